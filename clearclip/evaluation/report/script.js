// A click on a table's header sorts its rows: numbers from the greatest, then from the least; text by its letters.
for (const button of document.querySelectorAll("th > button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const value = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent.trim();
    const rows = [...body.rows], numeric = rows.every(row => value(row) === "" || !isNaN(value(row)));
    const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
    const compare = (a, b) => numeric ? value(a) - value(b) : value(a).localeCompare(value(b));
    const empty = row => numeric && value(row) === "";
    rows.sort((a, b) => empty(a) - empty(b) || (down ? -1 : 1) * compare(a, b));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...rows);
  });
}
