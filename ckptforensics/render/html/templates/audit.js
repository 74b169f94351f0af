"use strict";
// The audit's page. The data is in the element #data; all of it reaches the page as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const main = document.getElementById("main");
  const SEVERITIES = ["error", "warning", "note"];
  // Rows that are printed of a table, and members of a family that are drawn.
  const MOST_PRINTED = 500;
  const MOST_DRAWN = 1500;
  const LANES = 24;
  // Rows that are kept above and below those in sight.
  const SPARE = 12;

  // ------------------------------------------------------------------ elements

  const SVG = "http://www.w3.org/2000/svg";

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) {
        element.setAttribute(name, value === true ? "" : value);
      }
    }
    for (const child of children) {
      if (child !== null && child !== undefined) {
        element.append(child instanceof Node ? child : String(child));
      }
    }
    return element;
  }

  const el = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);
  // A name of a model: its direction of writing stays its own.
  const name = (text) => el("bdi", { class: "said" }, text);
  const number = (value) => value.toLocaleString("en");

  function bytes(count) {
    let value = count;
    for (const unit of ["B", "kB", "MB"]) {
      if (value < 999.5) return `${value >= 100 || unit === "B" ? value.toFixed(0) : value.toFixed(1)} ${unit}`;
      value /= 1000;
    }
    return `${value.toLocaleString("en", { maximumFractionDigits: 1 })} GB`;
  }

  function list(rows) {
    return el("ul", {}, ...rows.map((row) => el("li", { class: "said" }, row)));
  }

  // ------------------------------------------------------------------ what the data says

  const models = data.models.map((model, place) => Object.assign(model, { place, found: [] }));
  const byName = new Map();
  for (const model of models) if (!byName.has(model.name)) byName.set(model.name, model.place);
  const findings = data.findings.map(
    ([id, rule, severity, model, place, message, evidence, standing], order) => {
      const finding = { id, rule, severity, model, place, message, evidence, standing, order };
      if (typeof model === "number") models[model].found.push(finding);
      return finding;
    },
  );
  const familyOf = new Map();
  const families = data.families.map(([members, columns, parents, edges], place) => {
    for (const member of members) if (typeof member === "number") familyOf.set(member, place);
    return { members, columns, parents, edges, place };
  });

  const called = (reference) =>
    typeof reference === "number" ? models[reference].name : reference;
  // A second model that is shown by the same name is addressed by its place.
  function address(place) {
    const model = models[place];
    const key = byName.get(model.name) === place ? model.name : `#${place}`;
    return `#model=${encodeURIComponent(key)}`;
  }
  function modelLink(reference) {
    if (typeof reference !== "number") return name(reference);
    return el("a", { href: address(reference) }, name(called(reference)));
  }
  const gravest = (found) => {
    const places = found.filter((row) => !row.standing).map((row) => SEVERITIES.indexOf(row.severity));
    return places.length ? Math.min(...places) : SEVERITIES.length;
  };
  function tally(found) {
    const counting = found.filter((row) => !row.standing);
    const parts = SEVERITIES.map((severity) => {
      const count = counting.filter((row) => row.severity === severity).length;
      return count ? `${number(count)} ${severity}${count === 1 ? "" : "s"}` : "";
    });
    return parts.filter(Boolean).join(", ");
  }
  const familyFound = (family) =>
    family.members.flatMap((member) => (typeof member === "number" ? models[member].found : []));
  const ruleName = (id) => (data.rules[id] ? data.rules[id][0] : "");

  // ------------------------------------------------------------------ a table of any length

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
      this.heads = columns.map((column, place) =>
        el("th", { class: column.class, scope: "col" },
          el("button", { type: "button" }, column.title)));
      this.heads.forEach((head, place) =>
        head.firstChild.addEventListener("click", () => this.sort(place)));
      this.body = el("tbody");
      this.table = el("table", { "aria-label": label },
        el("colgroup", {}, ...columns.map((column) => {
          const col = el("col", { class: column.class });
          if (column.width) col.style.width = column.width;
          return col;
        })),
        el("thead", {}, el("tr", {}, ...this.heads)), this.body);
      this.scroller = el("div", { class: "grid", tabindex: "0", role: "group", "aria-label": label }, this.table);
      this.count = el("p", { class: "count", "aria-live": "polite" });
      this.element = el("div", {}, this.count, this.scroller);
      this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
      this.scroller.addEventListener("keydown", (event) => this.key(event));
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("tr.row");
        if (row && !event.target.closest("a")) location.hash = this.href(this.rows[Number(row.dataset.index)]);
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
      this.scroller.scrollTop = 0;
      const of = this.rows.length === this.all.length ? "" : ` of ${number(this.all.length)}`;
      this.count.textContent = `${number(this.rows.length)}${of} shown`;
      this.table.setAttribute("aria-rowcount", String(this.rows.length + 1));
      this.draw(true);
    }

    draw(again) {
      const height = this.rowHeight();
      const seen = this.scroller.clientHeight || window.innerHeight;
      let first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - SPARE);
      let last = Math.min(this.rows.length, first + Math.ceil(seen / height) + 2 * SPARE);
      if (this.printing) [first, last] = [0, Math.min(this.rows.length, MOST_PRINTED)];
      if (!again && first === this.first && last === this.last) return;
      [this.first, this.last] = [first, last];
      const shown = this.rows.slice(first, last).map((row, place) => this.row(row, first + place));
      this.body.replaceChildren(this.gap(first * height), ...shown, this.gap((this.rows.length - last) * height));
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
      return el("tr", { class: "row", id: `${this.id}-${index}`, "aria-rowindex": index + 2, "data-index": index }, ...cells);
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
      if (event.key === "Enter" && this.active >= 0) location.hash = this.href(this.rows[this.active]);
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

  // ------------------------------------------------------------------ the overview

  const severityCell = (row) => el("span", { class: row.severity }, row.severity);
  const second = (text) => el("span", { class: "narrow" }, text);
  const twoLines = (first, below) => el("span", {}, first, second(below));

  const findingsGrid = new Grid({
    label: "Findings",
    rows: findings,
    href: (row) => (typeof row.model === "number" ? address(row.model) : `#rule=${row.rule}`),
    columns: [
      { title: "severity", width: "6.2rem", key: (row) => SEVERITIES.indexOf(row.severity), cell: severityCell },
      { title: "rule", class: "wide-only", width: "13rem", key: (row) => row.rule,
        cell: (row) => `${row.rule} ${ruleName(row.rule)}` },
      { title: "model", key: (row) => called(row.model),
        cell: (row) => twoLines(modelLink(row.model), row.message) },
      { title: "what", class: "wide-only", width: "38%", key: (row) => row.message, cell: (row) => name(row.message) },
      { title: "where", class: "wide-only", key: (row) => row.place, cell: (row) => name(row.place) },
    ],
  });

  const modelsGrid = new Grid({
    label: "Models",
    rows: models,
    href: (row) => address(row.place),
    columns: [
      { title: "model", key: (row) => row.name,
        cell: (row) => twoLines(modelLink(row.place), `${data.states[row.state]}, ${row.family || "no family"}`) },
      { title: "findings", width: "12rem", key: (row) => gravest(row.found),
        cell: (row) => el("span", { class: SEVERITIES[gravest(row.found)] }, tally(row.found) || "none") },
      { title: "state", class: "wide-only", width: "8rem", key: (row) => row.state, cell: (row) => data.states[row.state] },
      { title: "family", class: "wide-only", width: "8rem", key: (row) => row.family || "", cell: (row) => row.family || "-" },
      { title: "licence", class: "wide-only", width: "9rem", key: (row) => row.licence || "", cell: (row) => row.licence || "-" },
      { title: "relatives", class: "wide-only number", width: "6.5rem", key: (row) => (row.relatives || []).length,
        cell: (row) => number((row.relatives || []).length) },
      { title: "size", class: "wide-only number", width: "7rem", key: (row) => row.bytes, cell: (row) => bytes(row.bytes) },
    ],
  });

  const familiesGrid = new Grid({
    label: "Families",
    rows: families,
    href: (row) => `#family=${row.place}`,
    columns: [
      { title: "family of", key: (row) => called(row.members[0]),
        cell: (row) => el("a", { href: `#family=${row.place}` }, name(called(row.members[0]))) },
      { title: "models", class: "number", width: "6rem", key: (row) => -row.members.length,
        cell: (row) => number(row.members.length) },
      { title: "findings", class: "wide-only", width: "14rem", key: (row) => gravest(familyFound(row)),
        cell: (row) => el("span", { class: SEVERITIES[gravest(familyFound(row))] }, tally(familyFound(row)) || "none") },
    ],
  });

  const search = el("input", { type: "search", placeholder: "search models and findings  ( / )", "aria-label": "Search models and findings" });
  const boxes = SEVERITIES.map((severity) => {
    const box = el("input", { type: "checkbox", value: severity });
    box.checked = true;
    return box;
  });
  const settled = el("input", { type: "checkbox" });
  const present = [...new Set(findings.map((row) => row.rule))].sort();
  const rules = el("select", { "aria-label": "Rule" }, el("option", { value: "" }, "every rule"),
    ...present.map((id) => el("option", { value: id }, `${id} ${ruleName(id)}`)));

  function overview() {
    const tools = el("div", { class: "tools", role: "search" }, search,
      el("fieldset", {}, el("legend", {}, "findings"),
        ...boxes.map((box) => el("label", { class: box.value }, box, `${box.value}s`)),
        el("label", {}, settled, "suppressed and known")),
      rules);
    const missing = data.missing.length
      ? el("details", {}, el("summary", {}, "places that could not be listed"),
        list(data.missing.map(([what, why]) => `${what}: ${why}`)))
      : null;
    const keys = el("p", { class: "faint keys" },
      "Keys: / searches, Tab goes to a table, arrows choose, Enter opens, Esc goes back.");
    const elements = [tools, missing, el("h2", {}, "Findings"), findingsGrid.element, el("h2", {}, "Models"), modelsGrid.element];
    if (families.length) elements.push(el("h2", {}, "Families"), familiesGrid.element);
    main.replaceChildren(...elements.filter(Boolean), keys);
    for (const grid of [findingsGrid, modelsGrid, familiesGrid]) grid.draw(true);
  }

  // What a row is searched by, made when it is first asked for.
  function words(row, make) {
    if (row.words === undefined) row.words = make(row).filter(Boolean).join("\n").toLowerCase();
    return row.words;
  }
  const modelWords = (row) =>
    words(row, (model) => [model.name, model.path, model.family, model.licence, data.states[model.state], model.source]);
  const findingWords = (row) =>
    words(row, (found) => [called(found.model), found.id, found.rule, ruleName(found.rule), found.message, found.place]);

  function apply() {
    const wanted = search.value.trim().toLowerCase();
    const severities = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const rule = rules.value;
    const kept = (row) =>
      severities.has(row.severity) && (!rule || row.rule === rule) && (settled.checked || !row.standing);
    findingsGrid.filter((row) => kept(row) && findingWords(row).includes(wanted));
    const narrowed = rule || severities.size < SEVERITIES.length;
    modelsGrid.filter((row) =>
      (!narrowed || row.found.some(kept)) && (modelWords(row).includes(wanted)));
    familiesGrid.filter((row) =>
      !wanted || row.members.some((member) => called(member).toLowerCase().includes(wanted)));
  }
  for (const control of [...boxes, settled, rules]) control.addEventListener("change", apply);
  search.addEventListener("input", apply);

  // ------------------------------------------------------------------ pages

  function back() {
    return el("p", {}, el("a", { href: "#" }, "\u2190 all models"));
  }

  function findingBox(row, withModel) {
    return el("article", { id: `finding-${row.id}` },
      el("p", {}, el("span", { class: row.severity }, row.severity), " ",
        el("a", { href: `#rule=${row.rule}` }, `${row.rule} ${ruleName(row.rule)}`), " ",
        el("span", { class: "faint" }, row.standing)),
      withModel ? el("p", {}, modelLink(row.model)) : null,
      el("p", { class: "said" }, row.message),
      el("p", { class: "faint said" }, `${row.place} [${row.id}]`),
      row.evidence.length ? list(row.evidence) : null);
  }

  function relationBox(model, [other, verdict, sentence, evidence]) {
    const said = data.sentences[sentence].map((part) =>
      part === 0 ? name(model.name) : part === 1 ? modelLink(other) : part);
    return el("article", {}, el("blockquote", {}, ...said),
      evidence.length ? el("p", {}, "Evidence:") : null,
      evidence.length ? list(evidence) : null,
      el("p", { class: "faint" }, `Found in the weights by ckptforensics ${data.tool}; ${data.run}.`));
  }

  function facts(rows) {
    return el("dl", {}, ...rows.filter(([, value]) => value !== null && value !== undefined)
      .flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
  }

  function plainTable(className, titles, rows) {
    return el("div", { class: "wide" }, el("table", { class: className },
      el("thead", {}, el("tr", {}, ...titles.map((title) => el("th", { scope: "col" }, title)))),
      el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell) => el("td", { class: "words" }, cell)))))));
  }

  const sources = { config: "config.json", gguf: "GGUF metadata", inferred: "INFERRED from names and shapes" };

  function modelPage(model) {
    const parts = [back(), el("h2", {}, name(model.name)), facts([
      ["state", data.states[model.state]],
      ["source", model.source],
      ["path", el("span", { class: "mono" }, model.path)],
      ["commit", model.commit && el("span", { class: "mono" }, model.commit)],
      ["licence (as declared)", model.licence],
      ["family", model.family && `${model.family} (${sources[model.familySource] || "source not known"})`],
      ["size", model.depth && `${model.depth} layers, width ${number(model.width || 0)}`],
      ["fingerprint", model.fingerprint && el("span", { class: "mono" }, model.fingerprint)],
    ])];
    const section = (title, ...content) => parts.push(el("h3", {}, title), ...content);
    if (model.missing) section("Not read", list(model.missing.map(([what, why]) => `${what}: ${why}`)));
    section("Findings", ...(model.found.length ? model.found.map((row) => findingBox(row, false)) : [el("p", {}, "none")]));
    if (model.claims) {
      section("What it claims", plainTable("claims", ["parent", "relation", "where", "verdict", "why"],
        model.claims.map(([parent, relation, where, verdict, why, matched]) =>
          [matched === null ? name(parent) : modelLink(matched), relation || "not said", where,
            el("span", { class: verdict === "contradicted" ? "error" : "" }, verdict), name(why)])));
    }
    if (model.relatives) section("What its weights show", ...model.relatives.map((row) => relationBox(model, row)));
    if (familyOf.has(model.place)) {
      const family = families[familyOf.get(model.place)];
      section("Family", ...drawing(family, model.place),
        el("p", {}, el("a", { href: `#family=${family.place}` }, `the family of ${number(family.members.length)} alone`)));
    }
    if (model.layers) section("Layers", ...layers(layerRows(model.layers)));
    if (model.files) section("Files", files(model.files));
    main.replaceChildren(...parts);
  }

  function files(rows) {
    return plainTable("files", ["file", "for", "bytes", "SHA-256 as computed", "as stated by the store"],
      rows.map(([file, role, size, computed, stated]) => [
        name(file), role, number(size),
        el("span", { class: "mono" }, computed || "not computed"),
        !stated ? "-" : stated === true ? "the same"
          : el("span", { class: computed ? "mono error" : "mono" }, stated)]));
  }

  // A layer's number, its two leading singular values, their gap, and its label or "".
  const layerRows = (text) => text.split(";").map((row) => {
    const [layer, first, next, gap, label] = row.split(" ");
    return [...[layer, first, next, gap].map(Number), label];
  });

  function layers(rows) {
    const height = 120, step = Math.max(6, Math.min(18, 900 / rows.length)), left = 46;
    const bars = (title, place) => {
      const values = rows.map((row) => row[place]);
      const top = Math.max(2, ...values);
      // Gains of layers differ by orders: the scale is logarithmic from 1 on.
      const scale = (value) => (Math.log(Math.max(value, 1)) / Math.log(top)) * height;
      const width = left + step * rows.length + 8;
      const image = svg("svg", { width, height: height + 34, viewBox: `0 0 ${width} ${height + 34}`, role: "img", "aria-label": title },
        svg("line", { class: "grid", x1: left, x2: width, y1: height + 10, y2: height + 10 }),
        svg("text", { x: left - 6, y: 16, "text-anchor": "end" }, top.toPrecision(3)),
        svg("text", { x: left - 6, y: height + 12, "text-anchor": "end" }, "1"));
      rows.forEach((row, index) => {
        const tall = scale(row[place]), x = left + index * step;
        image.append(svg("rect", { class: `bar ${row[4] || ""}`, x: x + 1, y: height + 10 - tall, width: step - 2, height: Math.max(tall, 1) },
          svg("title", {}, `layer ${row[0]}: ${row[place]}${row[4] ? `, ${row[4]}` : ""}`)));
        if (row[4] || index === 0 || index === rows.length - 1 || row[0] % 8 === 0) {
          image.append(svg("text", { x: x + step / 2, y: height + 24, "text-anchor": "middle" }, row[0]));
        }
      });
      return el("figure", {}, el("div", { class: "wide" }, image), el("figcaption", {}, title));
    };
    const labels = rows.filter((row) => row[4]).map((row) => `layer ${row[0]}: ${row[4]}`);
    return [
      el("p", {}, labels.length ? labels.join("; ") : "no explosion and no decay layer"),
      bars("\u03c31 of each layer, the largest gain of the block as a linear map (logarithmic)", 1),
      bars("gap \u03c31/\u03c32 of each layer (logarithmic)", 3),
      el("details", {}, el("summary", {}, "the numbers"),
        plainTable("", ["layer", "\u03c31", "\u03c32", "gap", "label"], rows)),
    ];
  }

  // ------------------------------------------------------------------ lineage

  function drawing(family, here) {
    const line = 26, step = 26, left = 14;
    const count = Math.min(family.members.length, MOST_DRAWN);
    const y = (member) => 16 + member * line;
    const x = (member) => left + family.columns[member] * step;
    const below = new Map();
    const rest = [];
    for (const edge of family.edges) {
      const [older, younger] = edge;
      const child = family.parents[younger] === older ? younger : family.parents[older] === younger ? older : null;
      if (child !== null && !below.has(child)) below.set(child, edge);
      else rest.push(edge);
    }
    const kind = ([, , directed, verdict]) =>
      `edge${directed ? "" : " plain"}${verdict === "same weights" || verdict === "identical" ? " same" : ""}`;
    const head = (path) => svg("path", { class: "head", d: path });
    // Other relations run right of all names, each in a lane of its own as far as there are lanes.
    const labels = family.members.slice(0, count).map((reference, member) => {
      const edge = below.get(member);
      const full = called(reference);
      const short = full.length > 60 ? `${full.slice(0, 59)}\u2026` : full;
      const how = edge ? ` ${edge[3]}${edge[4] ? `: ${edge[4]}` : ""}` : "";
      const aside = how + (typeof reference === "number" ? "" : " (not audited)");
      return { full, short, aside, end: x(member) + 20 + 7 * (short.length + aside.length) };
    });
    const far = Math.max(...labels.map((label) => label.end));
    const width = far + 14 + 7 * LANES;
    const image = svg("svg", { width, height: count * line + 12, viewBox: `0 0 ${width} ${count * line + 12}`, role: "img",
      "aria-label": `Lineage of ${family.members.length} models; the relations are listed below` });
    for (const [child, edge] of below) {
      const parent = family.parents[child];
      if (child >= count || parent >= count) continue;
      const [cx, cy, px, py] = [x(child), y(child), x(parent), y(parent)];
      image.append(svg("path", { class: kind(edge), d: `M${px} ${py + 6}V${cy}H${cx - 6}` }));
      if (edge[2]) image.append(head(edge[1] === child ? `M${cx - 5} ${cy}l-7 -4v8z` : `M${px} ${py + 6}l-4 7h8z`));
    }
    rest.filter(([older, younger]) => older < count && younger < count).forEach((edge, place) => {
      const [older, younger] = edge;
      const lane = far + 7 * (1 + (place % LANES));
      const [from, to] = [labels[older].end, labels[younger].end];
      image.append(svg("path", { class: kind(edge), d: `M${from} ${y(older)}H${lane}V${y(younger)}H${to}` }));
      if (edge[2]) image.append(head(`M${to} ${y(younger)}l7 -4v8z`));
    });
    for (let member = 0; member < count; member += 1) {
      const reference = family.members[member];
      const known = typeof reference === "number";
      const grave = known ? SEVERITIES[gravest(models[reference].found)] : "";
      const { full, short, aside } = labels[member];
      const text = svg("text", { x: x(member) + 11, y: y(member) + 4, class: reference === here ? "here" : null },
        short, svg("tspan", { class: "aside" }, aside));
      const mark = svg("circle", { class: `knot ${grave || ""}`, cx: x(member), cy: y(member), r: 5 });
      const node = svg("g", {}, mark, text, svg("title", {}, full));
      image.append(known ? svg("a", { href: address(reference) }, node) : node);
    }
    const told = family.members.length > count
      ? el("p", { class: "faint" }, `${number(family.members.length - count)} more are not drawn; the table of models has all.`) : null;
    return [el("div", { class: "tree" }, image),
      el("p", { class: "faint" }, "A line with a head goes from the older model to the younger, as the weights are consistent with; a dashed line has no direction; a thick one joins equal weights. A filled mark has findings."),
      told].filter(Boolean);
  }

  function familyPage(family) {
    const rows = family.edges.slice(0, MOST_DRAWN).map(([older, younger, directed, verdict, relation]) =>
      [modelLink(family.members[older]), directed ? "\u2192" : "\u2014", modelLink(family.members[younger]), relation ? `${verdict}: ${relation}` : verdict]);
    main.replaceChildren(back(), el("h2", {}, "Family of ", name(called(family.members[0]))),
      ...drawing(family, null), el("h3", {}, "Relations"),
      plainTable("", ["model", "", "model", "verdict"], rows));
  }

  function rulePage(id) {
    const [title, summary, page] = data.rules[id] || ["", "", ""];
    const rows = findings.filter((row) => row.rule === id);
    main.replaceChildren(back(), el("h2", {}, `${id} ${title}`), el("p", {}, summary), el("pre", {}, page),
      el("h3", {}, "Findings: ", number(rows.length)), ...rows.slice(0, 200).map((row) => findingBox(row, true)),
      rows.length > 200 ? el("p", {}, "The table of findings has the others.") : "");
  }

  // ------------------------------------------------------------------ ways between them

  let where = null;
  let kept = { scroll: 0, focus: null };

  function show() {
    const [kind, value] = /^#(\w+)=(.*)$/.exec(location.hash)?.slice(1) || ["", ""];
    const onOverview = main.contains(findingsGrid.element);
    if (onOverview) kept = { scroll: window.scrollY, focus: document.activeElement };
    let found = false;
    try {
      found = route(kind, decodeURIComponent(value));
    } catch (problem) {
      if (!(problem instanceof URIError)) throw problem;
    }
    if (!found) {
      overview();
      window.scrollTo(0, kept.scroll);
      if (where !== null && kept.focus && main.contains(kept.focus)) kept.focus.focus({ preventScroll: true });
    } else {
      window.scrollTo(0, 0);
      main.focus({ preventScroll: true });
    }
    where = location.hash;
  }

  function route(kind, value) {
    if (kind === "model") {
      const place = byName.has(value) ? byName.get(value) : /^#\d+$/.test(value) ? Number(value.slice(1)) : -1;
      if (!models[place]) return false;
      modelPage(models[place]);
    } else if (kind === "family" && families[Number(value)]) familyPage(families[Number(value)]);
    else if (kind === "rule" && Object.hasOwn(data.rules, value)) rulePage(value);
    else return false;
    return true;
  }

  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (!main.contains(search)) location.hash = "";
      // The overview is there when the address has changed.
      requestAnimationFrame(() => requestAnimationFrame(() => search.focus()));
    } else if (event.key === "Escape") {
      if (event.target === search && search.value) {
        search.value = "";
        apply();
      } else if (main.contains(search)) findingsGrid.scroller.focus();
      else location.hash = "";
    }
  });
  window.addEventListener("hashchange", show);
  window.addEventListener("resize", () => {
    for (const grid of [findingsGrid, modelsGrid, familiesGrid]) if (main.contains(grid.element)) grid.draw(true);
  });
  const print = (printing) => () => {
    for (const part of printing ? main.querySelectorAll("details") : []) part.open = true;
    for (const grid of [findingsGrid, modelsGrid, familiesGrid]) {
      grid.printing = printing;
      grid.draw(true);
    }
  };
  window.addEventListener("beforeprint", print(true));
  window.addEventListener("afterprint", print(false));

  apply();
  show();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
