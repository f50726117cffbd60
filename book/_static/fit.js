// Makes a displayed formula that is wider than its column smaller, down to three quarters.
(() => {
  const fit = () => {
    for (const box of document.querySelectorAll('.bd-article mjx-container[display="true"]')) {
      box.dataset.size ??= parseFloat(box.style.fontSize) || 100;
      box.style.fontSize = `${box.dataset.size}%`;
      if (box.scrollWidth > box.clientWidth) {
        const scale = Math.max(0.75, (box.clientWidth - 1) / box.scrollWidth);
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
