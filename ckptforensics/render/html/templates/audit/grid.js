// A table of any length.

// Rows that are printed, and rows that are kept above and below those in sight.
const MOST_PRINTED = 500;
const SPARE = 12;

// Draws the rows in sight of `rows` only. A column has `title`, `key` (what it sorts by), `cell`
// (what a row shows), and may have `class` and `width`.
class Grid {
  constructor({ label, columns, rows, href }) {
    this.columns = columns;
    this.all = rows;
    this.rows = rows;
    this.href = href;
    this.sorted = null;
    this.active = -1;
    this.id = label.replace(/\W+/g, "-");
    this.heads = columns.map((column) =>
      el(
        "th",
        { class: column.class, scope: "col" },
        el("button", { type: "button" }, column.title),
      ),
    );
    this.heads.forEach((head, place) =>
      head.firstChild.addEventListener("click", () => this.sort(place)),
    );
    this.body = el("tbody");
    this.table = el(
      "table",
      { "aria-label": label },
      el(
        "colgroup",
        {},
        ...columns.map((column) => {
          const col = el("col", { class: column.class });
          if (column.width) col.style.width = column.width;
          return col;
        }),
      ),
      el("thead", {}, el("tr", {}, ...this.heads)),
      this.body,
    );
    this.scroller = el(
      "div",
      { class: "grid", tabindex: "0", role: "group", "aria-label": label },
      this.table,
    );
    this.count = el("p", { class: "count", "aria-live": "polite" });
    this.element = el("div", {}, this.count, this.scroller);
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr.row");
      if (row && !event.target.closest("a"))
        go(this.href(this.rows[Number(row.dataset.index)]));
    });
  }

  rowHeight() {
    const root = document.documentElement;
    const rem = parseFloat(getComputedStyle(root).fontSize);
    return parseFloat(getComputedStyle(root).getPropertyValue("--row")) * rem;
  }

  filter(keep) {
    this.rows = this.all.filter(keep);
    this.arrange();
  }

  sort(place) {
    const before = this.sorted;
    const descending = before !== null && before.place === place && !before.descending;
    this.sorted = { place, descending };
    this.heads.forEach((head, other) => {
      if (other === place) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    this.arrange();
  }

  arrange() {
    if (this.sorted) {
      const { key } = this.columns[this.sorted.place];
      const sign = this.sorted.descending ? -1 : 1;
      const keyed = this.rows.map((row) => [key(row), row]);
      keyed.sort(([a], [b]) => (a < b ? -sign : a > b ? sign : 0));
      this.rows = keyed.map(([, row]) => row);
    }
    this.active = -1;
    this.scroller.scrollTop = this.top = 0;
    const of = this.rows.length === this.all.length ? "" : ` of ${number(this.all.length)}`;
    this.count.textContent = `${number(this.rows.length)}${of} shown`;
    this.table.setAttribute("aria-rowcount", String(this.rows.length + 1));
    this.draw(true);
  }

  // Puts the table back where it was scrolled to: out of the page it forgets that.
  restore() {
    this.scroller.scrollTop = this.top;
    this.draw(true);
  }

  draw(again) {
    if (this.scroller.isConnected) this.top = this.scroller.scrollTop;
    const height = this.rowHeight();
    const seen = this.scroller.clientHeight || window.innerHeight;
    let first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - SPARE);
    let last = Math.min(this.rows.length, first + Math.ceil(seen / height) + 2 * SPARE);
    if (this.printing) [first, last] = [0, Math.min(this.rows.length, MOST_PRINTED)];
    if (!again && first === this.first && last === this.last) return;
    [this.first, this.last] = [first, last];
    const shown = this.rows.slice(first, last).map((row, place) => this.row(row, first + place));
    this.body.replaceChildren(
      this.gap(first * height),
      ...shown,
      this.gap((this.rows.length - last) * height),
    );
    this.mark();
  }

  gap(height) {
    const cell = el("td", { class: "fill" });
    const row = el("tr", { "aria-hidden": "true" }, cell);
    cell.style.height = this.printing ? "0" : `${height}px`;
    return row;
  }

  row(row, index) {
    const cells = this.columns.map((column) => el("td", { class: column.class }, column.cell(row)));
    // Arrows go along the rows; Tab would go through all of them.
    for (const cell of cells) {
      for (const link of cell.querySelectorAll("a")) link.tabIndex = -1;
    }
    return el(
      "tr",
      { class: "row", id: `${this.id}-${index}`, "aria-rowindex": index + 2, "data-index": index },
      ...cells,
    );
  }

  mark() {
    for (const row of this.body.querySelectorAll("tr.active")) row.classList.remove("active");
    const row = this.body.querySelector(`tr[data-index="${this.active}"]`);
    if (row) row.classList.add("active");
    if (row) this.scroller.setAttribute("aria-activedescendant", row.id);
    else this.scroller.removeAttribute("aria-activedescendant");
  }

  key(event) {
    if (event.target !== this.scroller || event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight()) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    const last = this.rows.length - 1;
    if (event.key === "Enter" && this.active >= 0)
      go(this.href(this.rows[this.active]));
    else if (event.key in steps) this.go(this.active + steps[event.key]);
    else if (event.key === "Home") this.go(0);
    else if (event.key === "End") this.go(last);
    else return;
    event.preventDefault();
  }

  go(index) {
    if (!this.rows.length) return;
    this.active = Math.min(Math.max(index, 0), this.rows.length - 1);
    const height = this.rowHeight();
    const { scrollTop, clientHeight } = this.scroller;
    const top = this.active * height;
    const room = clientHeight - 2 * height;
    if (top < scrollTop) this.scroller.scrollTop = top;
    else if (top > scrollTop + room) this.scroller.scrollTop = top - room;
    this.draw();
    this.mark();
  }
}
