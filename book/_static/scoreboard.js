// Filters the rows of all tables, opens the tables with rows that are left, sorts by a column.
(() => {
  const form = document.querySelector(".scores-filter");
  const folds = [...document.querySelectorAll("details.scores")];
  const rows = folds.flatMap(fold => [...fold.querySelectorAll("tbody tr")]);
  const [text, state] = form.querySelectorAll("input, select");
  const words = new Map(rows.map(row => [row, row.textContent.toLowerCase()]));
  const stateOf = row => row.querySelector("td span").textContent;

  const filter = () => {
    const wanted = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = wanted.length > 0 || state.value !== "";
    for (const row of rows) {
      const fits = wanted.every(word => words.get(row).includes(word));
      row.hidden = !(fits && (state.value === "" || stateOf(row) === state.value));
    }
    for (const fold of folds) {
      const left = fold.querySelectorAll("tbody tr:not([hidden])").length;
      fold.open = asked && left > 0;
      fold.hidden = asked && left === 0;
    }
    const shown = rows.filter(row => !row.hidden).length;
    form.querySelector("output").textContent = asked ? `${shown} of ${rows.length} rows` : "";
  };

  const key = (row, column) => {
    const cell = row.cells[column].textContent.replace(/,/g, "");
    const number = parseFloat(cell.replace("−", "-"));
    return Number.isNaN(number) ? cell : number;
  };
  const sort = (head, column) => {
    const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", turn === 1 ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const sorted = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one, column), key(two, column)];
      const order = typeof a === "number" && typeof b === "number" ? a - b
        : String(a).localeCompare(String(b));
      return turn * order;
    });
    body.append(...sorted);
  };
  for (const table of document.querySelectorAll("table.scores")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.onclick = () => sort(head, column);
      head.replaceChildren(button);
    });
  }

  // A link from the summary opens what it leads to.
  const open = () => {
    const target = folds.find(fold => `#${fold.id}` === location.hash);
    if (target) target.open = true;
  };
  addEventListener("hashchange", open);
  open();
  text.oninput = state.onchange = filter;
  form.hidden = false;
})();
