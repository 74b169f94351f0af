// The first page: findings, models, families, and what chooses among them.

const main = document.getElementById("main");

const severityCell = (row) => el("span", { class: row.severity }, row.severity);
const second = (text) => el("span", { class: "narrow" }, text);
const twoLines = (first, below) => el("span", {}, first, second(below));

const findingsGrid = new Grid({
  label: "Findings",
  rows: findings,
  href: (row) => (typeof row.model === "number" ? address(row.model) : ruleAddress(row.rule)),
  columns: [
    {
      title: "severity",
      width: "6.2rem",
      key: (row) => SEVERITIES.indexOf(row.severity),
      cell: severityCell,
    },
    {
      title: "rule",
      class: "wide-only",
      width: "15rem",
      key: (row) => row.rule,
      cell: (row) => `${row.rule} ${ruleName(row.rule)}`,
    },
    {
      title: "model",
      key: (row) => called(row.model),
      cell: (row) => twoLines(modelLink(row.model), row.message),
    },
    {
      title: "what",
      class: "wide-only",
      width: "38%",
      key: (row) => row.message,
      cell: (row) => name(row.message),
    },
    { title: "where", class: "wide-only", key: (row) => row.place, cell: (row) => name(row.place) },
  ],
});

const modelsGrid = new Grid({
  label: "Models",
  rows: models,
  href: (row) => address(row.place),
  columns: [
    {
      title: "model",
      key: (row) => row.name,
      cell: (row) =>
        twoLines(modelLink(row.place), `${data.states[row.state]}, ${row.family || "no family"}`),
    },
    {
      title: "findings",
      width: "12rem",
      key: (row) => gravest(row.found),
      cell: (row) =>
        el("span", { class: SEVERITIES[gravest(row.found)] }, tally(row.found) || "none"),
    },
    {
      title: "state",
      class: "wide-only",
      width: "8rem",
      key: (row) => row.state,
      cell: (row) => data.states[row.state],
    },
    {
      title: "family",
      class: "wide-only",
      width: "8rem",
      key: (row) => row.family || "",
      cell: (row) => row.family || "-",
    },
    {
      title: "licence",
      class: "wide-only",
      width: "9rem",
      key: (row) => row.licence || "",
      cell: (row) => row.licence || "-",
    },
    {
      title: "relatives",
      class: "wide-only number",
      width: "6.5rem",
      key: (row) => row.kin,
      cell: (row) => number(row.kin),
    },
    {
      title: "size",
      class: "wide-only number",
      width: "7rem",
      key: (row) => row.bytes,
      cell: (row) => bytes(row.bytes),
    },
  ],
});

const familiesGrid = new Grid({
  label: "Families",
  rows: families,
  href: familyAddress,
  columns: [
    {
      title: "family of",
      key: (row) => called(row.members[0]),
      cell: (row) => el("a", { href: familyAddress(row) }, name(called(row.members[0]))),
    },
    {
      title: "models",
      class: "number",
      width: "6rem",
      key: (row) => -row.members.length,
      cell: (row) => number(row.members.length),
    },
    {
      title: "findings",
      class: "wide-only",
      width: "18rem",
      key: (row) => gravest(familyFound(row)),
      cell: (row) =>
        el(
          "span",
          { class: SEVERITIES[gravest(familyFound(row))] },
          tally(familyFound(row)) || "none",
        ),
    },
  ],
});

const search = el("input", {
  type: "search",
  placeholder: "search models and findings  ( / )",
  "aria-label": "Search models and findings",
});
const boxes = SEVERITIES.map((severity) => {
  const box = el("input", { type: "checkbox", value: severity });
  box.checked = true;
  return box;
});
const settled = el("input", { type: "checkbox" });
const present = [...new Set(findings.map((row) => row.rule))].sort();
const rules = el(
  "select",
  { "aria-label": "Rule" },
  el("option", { value: "" }, "every rule"),
  ...present.map((id) => el("option", { value: id }, `${id} ${ruleName(id)}`)),
);

function overview() {
  const tools = el(
    "div",
    { class: "tools", role: "search" },
    search,
    el(
      "fieldset",
      {},
      el("legend", {}, "findings"),
      ...boxes.map((box) => el("label", { class: box.value }, box, `${box.value}s`)),
      el("label", {}, settled, "suppressed and known"),
    ),
    rules,
  );
  const missing = data.missing.length
    ? el(
        "details",
        {},
        el("summary", {}, "places that could not be listed"),
        list(data.missing.map(([what, why]) => `${what}: ${why}`)),
      )
    : null;
  const keys = el(
    "p",
    { class: "faint keys" },
    "Keys: / searches, Tab goes to a table, arrows choose, Enter opens, Esc goes back.",
  );
  const elements = [
    tools,
    missing,
    el("h2", {}, "Findings"),
    findingsGrid.element,
    el("h2", {}, "Models"),
    modelsGrid.element,
  ];
  if (families.length) elements.push(el("h2", {}, "Families"), familiesGrid.element);
  main.replaceChildren(...elements.filter(Boolean), keys);
  for (const grid of [findingsGrid, modelsGrid, familiesGrid]) grid.restore();
}

// What a row is searched by, made when it is first asked for.
function words(row, make) {
  if (row.words === undefined) row.words = make(row).filter(Boolean).join("\n").toLowerCase();
  return row.words;
}
const modelWords = (row) =>
  words(row, (model) => [
    model.name,
    model.path,
    model.family,
    model.licence,
    data.states[model.state],
    model.source,
  ]);
const findingWords = (row) =>
  words(row, (found) => [
    called(found.model),
    found.id,
    found.rule,
    ruleName(found.rule),
    found.message,
    found.place,
  ]);

function apply() {
  const wanted = search.value.trim().toLowerCase();
  const severities = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const rule = rules.value;
  const kept = (row) =>
    severities.has(row.severity) &&
    (!rule || row.rule === rule) &&
    (settled.checked || !row.standing);
  findingsGrid.filter((row) => kept(row) && findingWords(row).includes(wanted));
  const narrowed = rule || severities.size < SEVERITIES.length;
  modelsGrid.filter(
    (row) => (!narrowed || row.found.some(kept)) && modelWords(row).includes(wanted),
  );
  familiesGrid.filter(
    (row) => !wanted || row.members.some((member) => called(member).toLowerCase().includes(wanted)),
  );
}
for (const control of [...boxes, settled, rules]) control.addEventListener("change", apply);
search.addEventListener("input", apply);
