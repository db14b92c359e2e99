// What the page does by itself: the line that says what is being done, grey numbers of other settings, scores of patches, the picture.
window.fv = (() => {
  const one = (css, within = document) => within.querySelector(css);
  let clicked = false, settings = null;

  // The server says in data-step what it does, and in data-asked what the numbers are about.
  function refresh() {
    const verdict = one(".fv-verdict");
    if (verdict) clicked = false;
    const step = verdict ? verdict.dataset.step : clicked ? "Working …" : "";
    const old = Boolean(verdict && settings && !same(JSON.parse(verdict.dataset.asked), settings));
    const working = step !== "" && step !== "Stopped.";
    say(working ? step : old ? "The settings have changed: press Ask for new numbers." : step);
    mark("fv-working", working);
    mark("fv-stale", old);
  }

  const same = (asked, now) => asked.every((value, i) => value === null || value === now[i]);

  function say(text) {
    const line = one("#fv-now p");
    if (line && line.textContent !== text) line.textContent = text;
  }

  function mark(name, on) {
    const names = document.documentElement.classList;
    if (names.contains(name) !== on) names.toggle(name, on);
  }

  // On a phone the answers stand below everything that is asked: go there.
  function begin() {
    clicked = true;
    const verdict = one(".fv-verdict");
    if (verdict) verdict.dataset.step = "Working …";
    refresh();
    const results = one("#fv-results");
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (results.getBoundingClientRect().top > innerHeight / 2) results.scrollIntoView({ behavior: calm ? "auto" : "smooth" });
  }

  function end() {
    clicked = false;
    refresh();
  }

  // The patch of a block at a place (x, y) of the drawing, both from 0 to 1: [its crop or frame, row, column].
  function patchAt(parts, x, y) {
    const part = parts.find(([[left, top, right, bottom]]) => x >= left && x < right && y >= top && y < bottom);
    if (!part) return null;
    const [[left, top, right, bottom], [rows, columns]] = part;
    return [part, Math.floor((y - top) / (bottom - top) * rows), Math.floor((x - left) / (right - left) * columns)];
  }

  function point(view, x, y) {
    view.dataset.at = `${x} ${y}`;
    for (const block of document.querySelectorAll("#fv-kept .fv-pictures")) {
      const parts = JSON.parse(block.dataset.patches)[view.dataset.part];
      const found = parts && patchAt(parts, x, y);
      if (!found) continue;
      for (const each of block.querySelectorAll(`[data-part="${view.dataset.part}"]`)) frame(each, found);
      block.nextElementSibling.textContent = described(found, parts);
    }
  }

  function frame(view, [[[left, top, right, bottom], [rows, columns]], row, column]) {
    const box = one(".fv-cursor", view) || view.appendChild(Object.assign(document.createElement("i"), { className: "fv-cursor" }));
    const wide = (right - left) / columns, high = (bottom - top) / rows;
    const sides = { left: left + column * wide, top: top + row * high, width: wide, height: high };
    for (const [side, share] of Object.entries(sides)) box.style[side] = `${100 * share}%`;
  }

  function described([part, row, column], parts) {
    const [, [, columns], scores, ranks, ranked, kept] = part;
    const i = row * columns + column;
    const where = parts.length > 1 ? `part ${parts.indexOf(part) + 1}, ` : "";
    const state = kept.includes(i) ? "kept" : "dropped";
    return `${where}row ${row + 1}, column ${column + 1} · score ${scores[i]} · rank ${ranks[i]} of ${ranked} · ${state}`;
  }

  function pointed(event) {
    const view = event.target.closest?.("#fv-kept .fv-view");
    if (!view) return;
    const box = view.getBoundingClientRect();
    point(view, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  function moved(event) {
    const view = event.target.closest?.("#fv-kept .fv-view"), move = MOVES[event.key];
    if (!view || !move) return;
    event.preventDefault();
    const parts = JSON.parse(view.closest(".fv-pictures").dataset.patches)[view.dataset.part];
    const [x, y] = (view.dataset.at || "0 0").split(" ").map(Number);
    const [[[left, top, right, bottom], [rows, columns]], row, column] = patchAt(parts, x, y) || [parts[0], 0, 0];
    const wide = (right - left) / columns, high = (bottom - top) / rows, first = !view.dataset.at;
    const next = [left + (column + 0.5 + (first ? 0 : move[0])) * wide, top + (row + 0.5 + (first ? 0 : move[1])) * high];
    if (patchAt(parts, ...next)) point(view, ...next);
  }

  // What the page shows of the picture, drawn into one PNG.
  async function save() {
    const views = [...document.querySelectorAll("#fv-kept .fv-view")], gap = 12, size = 480;
    const shape = (view) => getComputedStyle(view).aspectRatio.split("/").map(Number);
    const heights = views.map((view) => { const [wide, high] = shape(view); return Math.round(size * high / wide); });
    const canvas = Object.assign(document.createElement("canvas"), {
      width: views.length * (size + gap) - gap, height: Math.max(...heights),
    });
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    for (const [i, view] of views.entries()) {
      const cover = one("img", view);
      for (const [source, opacity] of [[await picture(view), 1], [cover, getComputedStyle(cover).opacity]]) {
        context.globalAlpha = opacity;
        context.drawImage(source, i * (size + gap), 0, size, heights[i]);
      }
    }
    Object.assign(document.createElement("a"), { href: canvas.toDataURL("image/png"), download: "fastervlm.png" }).click();
  }

  async function picture(view) {
    const image = new Image();
    image.src = getComputedStyle(view).backgroundImage.slice(5, -2);
    await image.decode();
    return image;
  }

  async function copy(event) {
    if (!navigator.clipboard) return;
    event.preventDefault();
    await navigator.clipboard.writeText(event.target.href);
    one("#fv-copied").textContent = "The link is copied.";
  }

  document.addEventListener("pointermove", pointed);
  document.addEventListener("pointerdown", pointed);
  document.addEventListener("keydown", moved);
  document.addEventListener("click", (event) => {
    if (event.target.id === "fv-save") save();
    if (event.target.id === "fv-link") copy(event);
  });
  const told = { childList: true, subtree: true, attributes: true, attributeFilter: ["data-step", "data-asked"] };
  new MutationObserver(refresh).observe(document.documentElement, told);

  return {
    begin, end,
    settings: (...values) => { settings = values; refresh(); },
    asksAtOnce: () => { if (new URLSearchParams(location.search).get("picture")) one("#fv-ask").click(); },
  };
})();
