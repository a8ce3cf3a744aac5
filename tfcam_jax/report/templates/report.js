const PER_PAGE = 24;
const $ = (id) => document.getElementById(id);
const { about, summary } = JSON.parse($("data").textContent);
const entries = [], place = [];  // place[i]: chunk and position of the pictures of entry i
document.querySelectorAll("script.entries").forEach((block, chunk) =>
  JSON.parse(block.textContent).forEach((entry, position) => { entries.push(entry); place.push([chunk, position]); }));
const pictureBlocks = document.querySelectorAll("script.pictures");
const recent = new Map();  // the last few chunks' pictures, parsed

function picturesOf(index) {
  const [chunk, position] = place[index];
  if (!recent.has(chunk)) {
    if (recent.size >= 12) recent.delete(recent.keys().next().value);
    recent.set(chunk, JSON.parse(pictureBlocks[chunk].textContent));
  }
  return recent.get(chunk)[position];
}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value;
    else if (name === "style") node.style.cssText = value;  // as an attribute, the page's own policy would refuse it
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// ---- colours: ColorBrewer's RdBu, reversed, in 256 steps
const STOPS = ["053061", "2166ac", "4393c3", "92c5de", "d1e5f0", "f7f7f7", "fddbc7", "f4a582", "d6604d", "b2182b", "67001f"]
  .map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));
const COLORS = Array.from({ length: 256 }, (_, i) => {
  const at = (i / 255) * (STOPS.length - 1), k = Math.min(Math.floor(at), STOPS.length - 2), f = at - k;
  return STOPS[k].map((value, c) => Math.round(value + f * (STOPS[k + 1][c] - value)));
});
const signed = (value, digits = 2) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
const plain = (value, digits = 2) => value === null ? "\u2013" : (value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(digits);
const barColor = (value) => value < 0 ? "var(--blue)" : "var(--red)";

function unpack(picture, height, width) {
  const bytes = Uint8Array.from(atob(picture.maps), (c) => c.charCodeAt(0));
  const raw = new Int16Array(bytes.buffer), size = height * width;
  return ["T", "U", "D"].map((_, m) => {
    const rows = [];
    for (let i = 0; i < height; i++) {
      rows.push(Array.from(raw.subarray(m * size + i * width, m * size + (i + 1) * width), (v) => v / 32767 * picture.reach));
    }
    return rows;
  });
}

function sample(map, y, x, smooth) {
  const h = map.length, w = map[0].length;
  if (!smooth) return map[Math.min(h - 1, Math.floor(y * h))][Math.min(w - 1, Math.floor(x * w))];
  const fy = Math.min(Math.max(y * h - 0.5, 0), h - 1), fx = Math.min(Math.max(x * w - 0.5, 0), w - 1);
  const i = Math.floor(fy), j = Math.floor(fx), i1 = Math.min(i + 1, h - 1), j1 = Math.min(j + 1, w - 1);
  const a = fy - i, b = fx - j;
  return (1 - a) * ((1 - b) * map[i][j] + b * map[i][j1]) + a * ((1 - b) * map[i1][j] + b * map[i1][j1]);
}

function extremes(map) {
  let low = Infinity, high = -Infinity;
  for (const row of map) for (const value of row) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

// What is blue and what is red: of D, and of every map on the shared scale, as far to either side of zero.
function ownOrShared(map, signed, shared) {
  const [low, high] = extremes(map);
  if (shared === null && !signed) return [low, high];
  const reach = shared ?? Math.max(Math.abs(low), Math.abs(high));
  return [-reach, reach];
}

function drawMap(canvas, map, low, high, { smooth = true, gray = false, image = null } = {}) {
  const context = canvas.getContext("2d"), n = canvas.width;
  const pixels = context.createImageData(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const value = sample(map, (i + 0.5) / n, (j + 0.5) / n, smooth);
      const unit = high > low ? Math.min(Math.max((value - low) / (high - low), 0), 1) : 0.5, at = 4 * (i * n + j);
      const color = gray ? [255 * unit, 255 * unit, 255 * unit] : COLORS[Math.round(255 * unit)];
      pixels.data[at] = color[0]; pixels.data[at + 1] = color[1]; pixels.data[at + 2] = color[2]; pixels.data[at + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  if (image) {
    context.globalAlpha = 0.5;
    context.drawImage(image, 0, 0, n, n);
    context.globalAlpha = 1;
  }
}

function drawBoxes(canvas, entry, height, width) {
  const context = canvas.getContext("2d"), n = canvas.width;
  entry.regions.slice(0, 3).forEach((region, k) => {
    const [top, left, bottom, right] = region.box;
    const x = left / width * n, y = top / height * n, w = (right - left) / width * n, h = (bottom - top) / height * n;
    for (const [style, line] of [["#000", 3], ["#fff", 1.4]]) {
      context.strokeStyle = style; context.lineWidth = line * n / 160;
      context.strokeRect(x + 1, y + 1, w - 2, h - 2);
    }
    const size = Math.round(n / 11);
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.lineWidth = size / 4; context.strokeStyle = "#000"; context.fillStyle = "#fff";
    // Above a box that it would cover, if there is room.
    const above = h < 2 * size && y > 1.2 * size, left_of_text = x + size * 0.35, line = above ? y - size * 0.25 : y + size * 1.1;
    context.strokeText("ABC"[k], left_of_text, line);
    context.fillText("ABC"[k], left_of_text, line);
  });
}

// ---- what is chosen
const state = { page: 0, chosen: [], target: null };
const option = (name) => $(name).value;
const view = () => ({
  scale: document.querySelector('input[name="scale"]:checked').value,
  overlay: $("overlay").checked, smooth: $("smooth").checked, boxes: $("boxes").checked,
});
const last = (value) => value === null ? Infinity : value;  // images without the figure come last
const strongest = (entry) => entry.regions.length ? Math.abs(entry.regions[0].contribution) : 0;
const ORDERS = {
  cosmetic: (e) => (e.cosmetic ? 0 : 1e6) + (e.true_agreement === null ? 1e3 : e.difference_agreement - e.true_agreement),
  margin: (e) => e.margin, "-margin": (e) => -e.margin, unsure: (e) => Math.abs(e.margin),
  disagreement: (e) => last(e.difference_agreement),
  "-agreement": (e) => last(e.difference_agreement === null ? null : -e.difference_agreement),
  "-gap": (e) => -e.fooling_gap, region: (e) => -strongest(e), row: (e) => e.row,
};

function choose() {
  const words = option("text").trim().toLowerCase(), kind = option("kind");
  const wanted = ["label", "prediction", "domain"].map((name) => [name, option(name)]).filter(([, value]) => value !== "");
  const keep = (entry) =>
    (!words || entry.id.toLowerCase().includes(words) || entry.group.toLowerCase().includes(words)) &&
    wanted.every(([name, value]) => entry[name] === value.slice(1)) &&
    (!kind || (kind === "right" && entry.right === true) || (kind === "wrong" && entry.right === false) ||
      (kind === "cosmetic" && entry.cosmetic) || (kind === "map" && entry.true_agreement !== null));
  state.chosen = entries.map((_, index) => index).filter((index) => keep(entries[index]));
  const order = option("sort");
  if (order === "id") {
    state.chosen.sort((a, b) => entries[a].id.localeCompare(entries[b].id, undefined, { numeric: true }));
  } else {
    const key = new Map(state.chosen.map((index) => [index, ORDERS[order](entries[index])]));
    state.chosen.sort((a, b) => (key.get(a) === key.get(b) ? a - b : key.get(a) - key.get(b)));
  }
  state.page = 0;
  state.target = null;
  show();
}

function show() {
  const pages = Math.max(1, Math.ceil(state.chosen.length / PER_PAGE));
  state.page = Math.min(Math.max(state.page, 0), pages - 1);
  const shown = state.chosen.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
  $("count").textContent = `${state.chosen.length} of ${entries.length} images`;
  $("page").textContent = `page ${state.page + 1} of ${pages}`;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page === pages - 1;
  const own = view().scale === "own";
  $("low").textContent = own ? "T, U: lowest; D: against the true class" : "against the true class";
  $("high").textContent = own ? "T, U: highest; D: for the true class" : "for the true class";
  $("white").textContent = own ? "White is 0 in D, halfway in T and U." : "White is 0.";
  $("cards").replaceChildren(...shown.map(card));
  if (!shown.length) $("cards").append(element("p", { class: "empty" }, "No image fits this choice."));
}

function card(index) {
  const entry = entries[index];
  const badges = element("div", { class: "badges" });
  const badge = (text, kind = "") => badges.append(element("span", { class: kind }, text));
  if (entry.label !== null) badge(entry.label);
  badge(entry.right === true ? `called ${entry.prediction}` : `called ${entry.prediction}`,
    entry.right === null ? "" : entry.right ? "right" : "wrong");
  if (entry.domain) badge(entry.domain);
  if (entry.cosmetic) badge("cosmetic explanation", "cosmetic");
  const node = element("article", { class: "card" + (state.target === index ? " target" : "") },
    element("h3", {}, entry.id), badges, panels(index), ledger(entry));
  const agreement = entry.true_agreement === null ? "no human map" :
    `CC with the human map: T ${plain(entry.true_agreement)}, D ${plain(entry.difference_agreement)}`;
  node.append(element("p", { class: "more" },
    `p(${entry.label ?? entry.prediction}) ${entry.p.toFixed(3)} \u00b7 ${agreement} \u00b7 fooling gap ${entry.fooling_gap.toFixed(3)}`));
  return node;
}

function panels(index) {
  const entry = entries[index], picture = picturesOf(index), how = view();
  const grid = summary.mean_maps["all images"].difference, height = grid.length, width = grid[0].length;
  const maps = unpack(picture, height, width);
  const image = new Image();
  const row = element("div", { class: "panels" });
  const add = (title, values, scale, draw) => {
    const canvas = element("canvas", { width: 160, height: 160, role: "img", "aria-label": `${title} of ${entry.id}` });
    image.addEventListener("load", () => draw(canvas));
    const open = () => {
      $("dialog-title").textContent = `${entry.id}: ${title}${values ? ` (${values}; ${scale})` : ""}`;
      draw($("dialog-canvas"));
      $("dialog").showModal();
    };
    row.append(element("figure", {}, element("button", { type: "button", onclick: open, title: "Enlarge" }, canvas),
      element("figcaption", {}, title, element("small", {}, values), element("small", {}, scale))));
  };
  add("input", "", "", (canvas) => {
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = true;
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (how.boxes) drawBoxes(canvas, entry, height, width);
  });
  if (picture.human) {
    add("human map", "", "", (canvas) => drawMap(canvas, picture.human, 0, 255,
      { smooth: how.smooth, gray: true, image: how.overlay ? image : null }));
  } else if (summary.figures.maps) {  // others have one: the columns stay in line
    row.append(element("figure", {}, element("div", { class: "none" }, "none"), element("figcaption", {}, "human map")));
  }
  ["T, true class", "U, false class", "D = T \u2212 U"].forEach((title, m) => {
    const shared = how.scale !== "own", [lowest, highest] = extremes(maps[m]);
    const [low, high] = ownOrShared(maps[m], m === 2, shared ? picture.reach : null);
    const colours = shared || m === 2 ? `white 0, red ${plain(high)}` : "blue to red";
    add(title, `${plain(lowest)} to ${plain(highest)}`, colours, (canvas) => {
      drawMap(canvas, maps[m], low, high, { smooth: how.smooth, image: how.overlay ? image : null });
      if (how.boxes && m === 2) drawBoxes(canvas, entry, height, width);
    });
  });
  image.src = picture.input;
  return row;
}

function ledger(entry) {
  const named = entry.regions.slice(0, 3).map((region, k) =>
    [`${"ABC"[k]}, ${region.places} place${region.places > 1 ? "s" : ""}`, region.contribution]);
  const others = entry.regions.slice(3).reduce((sum, region) => sum + region.contribution, 0) + entry.rest;
  const lines = [...named, ["everywhere else", others], ["bias difference", entry.bias_difference]];
  const reach = Math.max(...lines.map(([, value]) => Math.abs(value)), Math.abs(entry.margin)) || 1;
  const line = ([name, value], kind = "") => {
    const width = Math.abs(value) / reach * 50;
    const fill = element("i", { style: `background:${barColor(value)};width:${width}%;left:${value < 0 ? 50 - width : 50}%` });
    return element("tr", { class: kind }, element("td", {}, name), element("td", {}, element("div", { class: "bar" }, fill)),
      element("td", {}, signed(value, 3)));
  };
  return element("table", { class: "ledger" }, element("tbody", {}, ...lines.map((l) => line(l)), line(["= margin", entry.margin], "sum")));
}

// ---- over the set
function fillSummary() {
  const f = summary.figures;
  const tile = (name, value) => $("tiles").append(element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  tile("images", String(f.images));
  if (f.accuracy !== null) tile("accuracy", (100 * f.accuracy).toFixed(1) + " %");
  tile("mean margin", signed(f.mean_margin));
  tile("human maps", String(f.maps));
  if (f.maps) { tile("CC of T", plain(f.true_agreement)); tile("CC of D", plain(f.difference_agreement)); }
  tile("fooling gap", plain(f.fooling_gap, 3));
  if (f.maps) tile("cosmetic", String(f.cosmetic));
  const reach = Math.max(...Object.values(summary.mean_maps).map((part) => Math.max(...extremes(part.difference).map(Math.abs))));
  for (const [name, part] of Object.entries(summary.mean_maps)) {
    const map = (values, bound, label) => {
      if (!values) return element("div", { class: "none" }, "no map");
      const canvas = element("canvas", { width: 96, height: 96, role: "img", "aria-label": `${label}, ${name}` });
      drawMap(canvas, values, -bound, bound);
      return canvas;
    };
    $("sets").append(element("figure", {}, element("figcaption", {}, element("b", {}, name)),
      element("div", { class: "pair" }, map(part.difference, reach, "mean D"),
        f.maps ? map(part.disagreement, 1, "mean N(D) less human map") : null),
      element("figcaption", {}, `${part.images} image${part.images > 1 ? "s" : ""}, ${part.maps} human map${part.maps === 1 ? "" : "s"}`)));
  }
  for (const region of summary.regions) {
    const entry = entries[region.row];
    $("regions").append(element("button", { type: "button", onclick: () => goTo(region.row), title: entry.id },
      element("img", { src: region.crop, alt: "", loading: "lazy" }),
      element("b", { style: `color:${barColor(region.contribution)}` }, signed(region.contribution)),
      element("span", {}, `${entry.label ?? entry.prediction}${entry.right === false ? ", wrong" : ""}`)));
  }
}

function goTo(index) {
  for (const name of ["text", "label", "prediction", "domain", "kind"]) $(name).value = "";
  choose();
  state.target = index;
  state.page = Math.floor(state.chosen.indexOf(index) / PER_PAGE);
  show();
  document.querySelector(".card.target").scrollIntoView({ block: "center" });
}

function fillSelect(name, what) {
  const values = [...new Set(entries.map((entry) => entry[name]).filter((value) => value))].sort();
  // The leading mark tells "any" from a value that is empty.
  $(name).append(element("option", { value: "" }, `any ${what}`), ...values.map((value) => element("option", { value: "=" + value }, value)));
  $(name).hidden = values.length < 2;
}

fillSelect("label", "label");
fillSelect("prediction", "prediction");
fillSelect("domain", "domain");
if (!entries.some((entry) => entry.true_agreement !== null)) {
  document.querySelectorAll('#kind option[value="cosmetic"], #kind option[value="map"]').forEach((node) => node.remove());
  document.querySelectorAll('#sort option[value="cosmetic"], #sort option[value$="agreement"]').forEach((node) => node.remove());
}
if (entries.every((entry) => entry.label === null)) {
  document.querySelectorAll('#kind option[value="right"], #kind option[value="wrong"]').forEach((node) => node.remove());
}
$("kind").hidden = $("kind").options.length < 2;
fillSummary();
$("text").addEventListener("input", choose);
for (const name of ["label", "prediction", "domain", "kind", "sort"]) $(name).addEventListener("change", choose);
document.querySelectorAll(".view input").forEach((node) => node.addEventListener("change", show));
const turn = (by) => { state.page += by; state.target = null; show(); $("images").scrollIntoView(); };
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
choose();
