// Sorting and filtering of the table in models.md.
(function () {
  const table = document.getElementById("models");
  const filter = document.getElementById("models-filter");
  if (!table || !filter) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const count = document.getElementById("models-count");

  // Every word must occur: in any column, or by comparison, as in `params<30M`, `top1>85` or `data=in21k`.
  const columns = Array.from(table.tHead.rows[0].cells, (cell) => cell.dataset.key);
  const short = { params: "parameters", size: "pixels", top1: "top-1", top5: "top-5", license: "licence" };
  const scale = { k: 1e3, m: 1e6, b: 1e9 };
  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const number = Number(text.replaceAll(",", ""));
    return text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };

  function matches(row, word) {
    const found = word.match(/^([\w-]+)(<=|>=|<|>|=)(?:([\d.]+)([kmb]?)|(.+))$/);
    const column = found ? columns.indexOf(short[found[1]] || found[1]) : -1;
    if (column < 0) return row.textContent.toLowerCase().includes(word);
    if (found[5]) return found[2] === "=" && row.cells[column].textContent.toLowerCase().includes(found[5]);
    const left = value(row, column);
    const right = Number(found[3]) * (scale[found[4]] || 1);
    if (typeof left !== "number") return false;
    const tests = { "<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right, "=": left === right };
    return tests[found[2]];
  }

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => matches(row, word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  }

  function sort(head) {
    const column = head.cellIndex;
    const numeric = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric; // numbers: the largest first
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row) => [value(row, column), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is unknown comes last
      const order = numeric ? a - b : String(a).localeCompare(String(b));
      return down ? -order : order;
    });
    body.append(...keyed.map(([, row]) => row));
  }

  for (const head of table.tHead.rows[0].cells) head.addEventListener("click", () => sort(head));
  filter.addEventListener("input", show);
  filter.closest("p").hidden = false;
  show();
})();
