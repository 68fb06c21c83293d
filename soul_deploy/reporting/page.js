"use strict";
// Sorts a table by the column whose heading was pressed: numbers as numbers, empty cells last.
const number = (text) => {
  const found = /^[+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?/i.exec(text.trim());
  return found ? parseFloat(found[0].replace(/,/g, "")) : NaN;
};
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
};
for (const heading of document.querySelectorAll("table:not(.plain) thead th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const table = heading.closest("table"), column = heading.cellIndex;
    const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const text = (row) => row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows].sort((a, b) =>
      !text(a) || !text(b) ? !text(a) - !text(b) : sign * compare(text(a), text(b)));
    table.tBodies[0].append(...rows);
  });
}
