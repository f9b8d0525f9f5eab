/* Sort the table of all classes by a click on a column's head, and filter it by name or group. */
(() => {
  const table = document.getElementById("all-classes");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const count = document.getElementById("class-count");
  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? (cell.dataset.value === "" ? null : Number(cell.dataset.value)) : cell.textContent;
  };
  const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const ascending = head.getAttribute("aria-sort") === "descending";
      table.querySelectorAll("thead th").forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      rows.sort((one, other) => {
        const a = value(one, column), b = value(other, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return ascending ? compare(a, b) : compare(b, a);
      });
      body.append(...rows);
    });
  });
  document.getElementById("class-filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase().replaceAll("_", " ").trim();
    let shown = 0;
    for (const row of rows) {
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase().replaceAll("_", " ");
      row.hidden = !text.includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  });
})();
