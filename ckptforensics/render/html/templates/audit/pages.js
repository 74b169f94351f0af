// The pages of a model, a family, a rule and a finding.

function back() {
  return el("p", {}, el("a", { href: home }, "\u2190 all models"));
}

const findingLink = (id) => (served ? el("a", { href: `/findings/${id}` }, id) : id);

function findingBox(row, withModel) {
  return el(
    "article",
    { id: `finding-${row.id}` },
    el(
      "p",
      {},
      el("span", { class: row.severity }, row.severity),
      " ",
      el("a", { href: ruleAddress(row.rule) }, `${row.rule} ${ruleName(row.rule)}`),
      " ",
      el("span", { class: "faint" }, row.standing),
    ),
    withModel ? el("p", {}, modelLink(row.model)) : null,
    el("p", { class: "said" }, row.message),
    el("p", { class: "faint said" }, `${row.place} [`, findingLink(row.id), "]"),
    row.evidence.length ? list(row.evidence) : null,
  );
}

const pairAddress = (one, other) => `/pairs/${served.numbers[one]}/${served.numbers[other]}`;

function relationBox(model, [other, verdict, sentence, evidence]) {
  const said = data.sentences[sentence].map((part) =>
    part === 0 ? name(model.name) : part === 1 ? modelLink(other) : part,
  );
  return el(
    "article",
    {},
    el("blockquote", {}, ...said),
    evidence.length ? el("p", {}, "Evidence:") : null,
    evidence.length ? list(evidence) : null,
    el("p", { class: "faint" }, `Found in the weights by ckptforensics ${data.tool}; ${data.run}.`),
    // Equal files were not compared.
    served && typeof other === "number" && verdict !== "same weights"
      ? el("p", {}, el("a", { href: pairAddress(model.place, other) }, "all that was measured"))
      : null,
  );
}

function facts(rows) {
  return el(
    "dl",
    {},
    ...rows
      .filter(([, value]) => value !== null && value !== undefined)
      .flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
  );
}

// A table that is drawn whole; with a class a narrow screen shows its rows one below another.
function plainTable(className, titles, rows) {
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      { class: className },
      el("thead", {}, el("tr", {}, ...titles.map((title) => el("th", { scope: "col" }, title)))),
      el(
        "tbody",
        {},
        ...rows.map((cells) => {
          const titled = (cell, place) =>
            el("td", { class: "words", "data-title": titles[place] }, cell);
          return el("tr", {}, ...cells.map(titled));
        }),
      ),
    ),
  );
}

const sources = {
  config: "config.json",
  gguf: "GGUF metadata",
  inferred: "INFERRED from names and shapes",
};

function modelPage(model) {
  const parts = [
    back(),
    el("h2", {}, name(model.name)),
    facts([
      ["state", data.states[model.state]],
      ["source", model.source],
      ["path", el("span", { class: "mono" }, model.path)],
      ["commit", model.commit && el("span", { class: "mono" }, model.commit)],
      ["licence (as declared)", model.licence],
      [
        "family",
        model.family && `${model.family} (${sources[model.familySource] || "source not known"})`,
      ],
      ["size", model.depth && `${model.depth} layers, width ${number(model.width || 0)}`],
      ["fingerprint", model.fingerprint && el("span", { class: "mono" }, model.fingerprint)],
    ]),
  ];
  const section = (title, ...content) => parts.push(el("h3", {}, title), ...content);
  if (model.missing)
    section("Not read", list(model.missing.map(([what, why]) => `${what}: ${why}`)));
  section(
    "Findings",
    ...(model.found.length
      ? model.found.map((row) => findingBox(row, false))
      : [el("p", {}, "none")]),
  );
  if (model.claims) {
    section(
      "What it claims",
      plainTable(
        "claims",
        ["parent", "relation", "where", "verdict", "why"],
        model.claims.map(([parent, relation, where, verdict, why, matched]) => [
          matched === null ? name(parent) : modelLink(matched),
          relation || "not said",
          where,
          el("span", { class: verdict === "contradicted" ? "error" : "" }, verdict),
          name(why),
        ]),
      ),
    );
  }
  if (model.relatives)
    section("What its weights show", ...model.relatives.map((row) => relationBox(model, row)));
  if (familyOf.has(model.place)) {
    const family = families[familyOf.get(model.place)];
    section(
      "Family",
      ...drawing(family, model.place),
      el(
        "p",
        {},
        el(
          "a",
          { href: familyAddress(family) },
          `the family of ${number(family.members.length)} alone`,
        ),
      ),
    );
  }
  if (model.layers) section("Layers", ...layers(layerRows(model.layers)));
  if (model.files) section("Files", files(model.files));
  main.replaceChildren(...parts);
}

function files(rows) {
  return plainTable(
    "files",
    ["file", "for", "bytes", "SHA-256 as computed", "as stated by the store"],
    rows.map(([file, role, size, computed, stated]) => [
      name(file),
      role,
      number(size),
      el("span", { class: "mono" }, computed || "not computed"),
      !stated
        ? "-"
        : stated === true
          ? "the same"
          : el("span", { class: computed ? "mono error" : "mono" }, stated),
    ]),
  );
}

// A layer's number, its two leading singular values, their gap, and its label or "".
const layerRows = (text) =>
  text.split(";").map((row) => {
    const [layer, first, next, gap, label] = row.split(" ");
    return [...[layer, first, next, gap].map(Number), label];
  });

function layers(rows) {
  const height = 120,
    step = Math.max(6, Math.min(18, 900 / rows.length)),
    left = 46;
  const bars = (title, place) => {
    const values = rows.map((row) => row[place]);
    const top = Math.max(2, ...values);
    // Gains of layers differ by orders: the scale is logarithmic from 1 on.
    const scale = (value) => (Math.log(Math.max(value, 1)) / Math.log(top)) * height;
    const width = left + step * rows.length + 8;
    const image = svg(
      "svg",
      {
        width,
        height: height + 34,
        viewBox: `0 0 ${width} ${height + 34}`,
        role: "img",
        "aria-label": title,
      },
      svg("line", { class: "grid", x1: left, x2: width, y1: height + 10, y2: height + 10 }),
      svg("text", { x: left - 6, y: 16, "text-anchor": "end" }, top.toPrecision(3)),
      svg("text", { x: left - 6, y: height + 12, "text-anchor": "end" }, "1"),
    );
    rows.forEach((row, index) => {
      const tall = scale(row[place]),
        x = left + index * step;
      image.append(
        svg(
          "rect",
          {
            class: `bar ${row[4] || ""}`,
            x: x + 1,
            y: height + 10 - tall,
            width: step - 2,
            height: Math.max(tall, 1),
          },
          svg("title", {}, `layer ${row[0]}: ${row[place]}${row[4] ? `, ${row[4]}` : ""}`),
        ),
      );
      if (row[4] || index === 0 || index === rows.length - 1 || row[0] % 8 === 0) {
        image.append(
          svg("text", { x: x + step / 2, y: height + 24, "text-anchor": "middle" }, row[0]),
        );
      }
    });
    return el("figure", {}, el("div", { class: "wide" }, image), el("figcaption", {}, title));
  };
  const labels = rows.filter((row) => row[4]).map((row) => `layer ${row[0]}: ${row[4]}`);
  return [
    el("p", {}, labels.length ? labels.join("; ") : "no explosion and no decay layer"),
    bars("\u03c31 of each layer, the largest gain of the block as a linear map (logarithmic)", 1),
    bars("gap \u03c31/\u03c32 of each layer (logarithmic)", 3),
    el(
      "details",
      {},
      el("summary", {}, "the numbers"),
      plainTable("", ["layer", "\u03c31", "\u03c32", "gap", "label"], rows),
    ),
  ];
}

function familyPage(family) {
  const rows = family.edges
    .slice(0, MOST_DRAWN)
    .map(([older, younger, directed, verdict, relation]) => [
      modelLink(family.members[older]),
      directed ? "\u2192" : "\u2014",
      modelLink(family.members[younger]),
      relation ? `${verdict}: ${relation}` : verdict,
    ]);
  main.replaceChildren(
    back(),
    el("h2", {}, "Family of ", name(called(family.members[0]))),
    ...drawing(family, null),
    el("h3", {}, "Relations"),
    plainTable("", ["model", "", "model", "verdict"], rows),
  );
}

function rulePage(id) {
  const [title, summary, page] = data.rules[id] || ["", "", ""];
  const rows = findings.filter((row) => row.rule === id);
  main.replaceChildren(
    back(),
    el("h2", {}, `${id} ${title}`),
    el("p", {}, summary),
    el("pre", {}, page),
    el("h3", {}, "Findings: ", number(rows.length)),
    ...rows.slice(0, 200).map((row) => findingBox(row, true)),
    rows.length > 200 ? el("p", {}, "The table of findings has the others.") : "",
  );
}

function findingPage(row) {
  const [title, summary, page] = data.rules[row.rule] || ["", "", ""];
  main.replaceChildren(
    back(),
    el("h2", {}, `${row.rule} ${title}`),
    findingBox(row, true),
    el("p", {}, summary),
    el("pre", {}, page),
  );
}
