// Makes a displayed formula that is wider than its column smaller, if two thirds suffice; a formula
// that is still wider keeps its size and scrolls.
(() => {
  const fit = () => {
    for (const box of document.querySelectorAll('.bd-article mjx-container[display="true"]')) {
      box.dataset.size ??= parseFloat(box.style.fontSize) || 100;
      box.style.fontSize = `${box.dataset.size}%`;
      const scale = (box.clientWidth - 1) / box.scrollWidth;
      if (box.scrollWidth > box.clientWidth && scale > 0.66) {
        box.style.fontSize = `${box.dataset.size * scale}%`;
      }
    }
  };
  window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    let width = 0;
    new ResizeObserver(([page]) => {
      if (page.contentRect.width !== width) fit();
      width = page.contentRect.width;
    }).observe(document.querySelector(".bd-article") ?? document.body);
  });
})();
