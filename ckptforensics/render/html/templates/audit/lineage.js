// The drawing of a family; where each member stands is in the data.

// Members that are drawn, and lanes for relations beside the tree.
const MOST_DRAWN = 1500;
const LANES = 24;

function drawing(family, here) {
  const line = 26,
    step = 26,
    left = 14;
  const count = Math.min(family.members.length, MOST_DRAWN);
  const y = (member) => 16 + member * line;
  const x = (member) => left + family.columns[member] * step;
  const below = new Map();
  const rest = [];
  for (const edge of family.edges) {
    const [older, younger] = edge;
    const child =
      family.parents[younger] === older
        ? younger
        : family.parents[older] === younger
          ? older
          : null;
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
  const image = svg("svg", {
    width,
    height: count * line + 12,
    viewBox: `0 0 ${width} ${count * line + 12}`,
    role: "img",
    "aria-label": `Lineage of ${family.members.length} models; the relations are listed below`,
  });
  for (const [child, edge] of below) {
    const parent = family.parents[child];
    if (child >= count || parent >= count) continue;
    const [cx, cy, px, py] = [x(child), y(child), x(parent), y(parent)];
    image.append(svg("path", { class: kind(edge), d: `M${px} ${py + 6}V${cy}H${cx - 6}` }));
    if (edge[2])
      image.append(
        head(edge[1] === child ? `M${cx - 5} ${cy}l-7 -4v8z` : `M${px} ${py + 6}l-4 7h8z`),
      );
  }
  rest
    .filter(([older, younger]) => older < count && younger < count)
    .forEach((edge, place) => {
      const [older, younger] = edge;
      const lane = far + 7 * (1 + (place % LANES));
      const [from, to] = [labels[older].end, labels[younger].end];
      image.append(
        svg("path", { class: kind(edge), d: `M${from} ${y(older)}H${lane}V${y(younger)}H${to}` }),
      );
      if (edge[2]) image.append(head(`M${to} ${y(younger)}l7 -4v8z`));
    });
  for (let member = 0; member < count; member += 1) {
    const reference = family.members[member];
    const known = typeof reference === "number";
    const grave = known ? SEVERITIES[gravest(models[reference].found)] : "";
    const { full, short, aside } = labels[member];
    const text = svg(
      "text",
      { x: x(member) + 11, y: y(member) + 4, class: reference === here ? "here" : null },
      short,
      svg("tspan", { class: "aside" }, aside),
    );
    const mark = svg("circle", {
      class: `knot ${grave || ""}`,
      cx: x(member),
      cy: y(member),
      r: 5,
    });
    const node = svg("g", {}, mark, text, svg("title", {}, full));
    image.append(known ? svg("a", { href: address(reference) }, node) : node);
  }
  const told =
    family.members.length > count
      ? el(
          "p",
          { class: "faint" },
          `${number(family.members.length - count)} more are not drawn; the table of models has all.`,
        )
      : null;
  return [
    el("div", { class: "tree" }, image),
    el(
      "p",
      { class: "faint" },
      "A line with a head goes from the older model to the younger, as the weights are consistent with; a dashed line has no direction; a thick one joins equal weights. A filled mark has findings.",
    ),
    told,
  ].filter(Boolean);
}
