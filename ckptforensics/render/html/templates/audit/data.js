// What the page's block of data says: models, findings and families with their names.

const data = JSON.parse(document.getElementById("data").textContent);
const SEVERITIES = ["error", "warning", "note"];

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

const called = (reference) => (typeof reference === "number" ? models[reference].name : reference);
// A page that is served has an address for each part; one that is a file has places in itself.
const served = data.served;
const home = served ? `/${served.query}` : "#";
const go = (where) => {
  if (where.startsWith("#")) location.hash = where;
  else location.assign(where);
};
// A second model that is shown by the same name is addressed by its place.
function address(place) {
  if (served) return `/models/${served.numbers[place]}`;
  const model = models[place];
  const key = byName.get(model.name) === place ? model.name : `#${place}`;
  return `#model=${encodeURIComponent(key)}`;
}
const ruleAddress = (id) => (served ? `/rules/${id}${served.query}` : `#rule=${id}`);
const familyAddress = (family) =>
  served
    ? `/families/${served.numbers[family.members.find((member) => typeof member === "number")]}`
    : `#family=${family.place}`;
function modelLink(reference) {
  if (typeof reference !== "number") return name(reference);
  return el("a", { href: address(reference) }, name(called(reference)));
}
const gravest = (found) => {
  const places = found
    .filter((row) => !row.standing)
    .map((row) => SEVERITIES.indexOf(row.severity));
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
