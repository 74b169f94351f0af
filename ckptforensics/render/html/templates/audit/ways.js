// Ways between the pages: addresses, keys, paper.

let where = null;
let kept = { scroll: 0, focus: null };

function show() {
  const [kind, value] = /^#(\w+)=(.*)$/.exec(location.hash)?.slice(1) || served?.start || ["", ""];
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
    if (where !== null && kept.focus && main.contains(kept.focus))
      kept.focus.focus({ preventScroll: true });
  } else {
    window.scrollTo(0, 0);
    main.focus({ preventScroll: true });
  }
  where = location.hash;
}

function route(kind, value) {
  if (kind === "model") {
    const place = served
      ? Number(value)
      : byName.has(value)
        ? byName.get(value)
        : /^#\d+$/.test(value)
          ? Number(value.slice(1))
          : -1;
    if (!models[place]) return false;
    modelPage({ ...models[place], ...JSON.parse(models[place].more) });
  } else if (kind === "finding" && findings[Number(value)]) findingPage(findings[Number(value)]);
  else if (kind === "family" && families[Number(value)]) familyPage(families[Number(value)]);
  else if (kind === "rule" && Object.hasOwn(data.rules, value)) rulePage(value);
  else return false;
  return true;
}

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    if (main.contains(search)) search.focus();
    else {
      go(home);
      // The overview is there when the address has changed.
      requestAnimationFrame(() => requestAnimationFrame(() => search.focus()));
    }
  } else if (event.key === "Escape") {
    if (event.target === search && search.value) {
      search.value = "";
      apply();
    } else if (main.contains(search)) findingsGrid.scroller.focus();
    else go(home);
  }
});
window.addEventListener("hashchange", show);
window.addEventListener("resize", () => {
  for (const grid of [findingsGrid, modelsGrid, familiesGrid])
    if (main.contains(grid.element)) grid.draw(true);
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
