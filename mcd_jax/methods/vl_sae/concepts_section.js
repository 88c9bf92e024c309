"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = new Map(data.units.map(unit => [unit.unit, unit]));
const list = document.getElementById("list"), detail = document.getElementById("detail"), word = document.getElementById("word");
const count = document.getElementById("count");
const MOST = 300;
let chosen = null;

function make(tag, text, attributes) {
  const node = document.createElement(tag);
  if (text !== undefined && text !== null) node.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  return node;
}

const caption = row => data.captions[row] || "";

function picture(row) {
  const uri = data.pictures[row];
  return uri && uri.startsWith("data:image/") ? make("img", null, {src: uri, alt: caption(row), title: caption(row)}) : make("span", "");
}

function name(unit) {
  return unit.texts.length ? unit.texts.slice(0, 4).map(([row]) => caption(row)).join(" · ") : "no caption";
}

// how often the words stand in a concept's captions; a number asks for the concept itself
function score(unit, asked) {
  if (!asked) return 1;
  if (/^\d+$/.test(asked) && Number(asked) === unit.unit) return 1000;
  let found = 0;
  for (const [row] of unit.texts) if (caption(row).toLowerCase().includes(asked)) found += 1;
  for (const [row] of unit.images) if (caption(row).toLowerCase().includes(asked)) found += 1;
  return found;
}

function search() {
  const asked = word.value.trim().toLowerCase();
  const found = data.units.map(unit => [score(unit, asked), unit]).filter(([s]) => s > 0);
  if (asked) found.sort((a, b) => b[0] - a[0]);
  list.replaceChildren();
  for (const [s, unit] of found.slice(0, MOST)) {
    const button = make("button", null, {type: "button", "data-unit": unit.unit});
    const text = make("span");
    text.append(make("bdi", name(unit)));
    button.append(unit.images.length ? picture(unit.images[0][0]) : make("span", ""), text, make("small", asked ? `${s} of ${unit.texts.length + unit.images.length}` : unit.mean.toFixed(3)));
    button.addEventListener("click", () => show(unit.unit));
    list.append(button);
  }
  count.textContent = `${found.length} of ${data.units.length} concepts` + (found.length > MOST ? `, the first ${MOST} are listed` : "");
  mark();
}

function mark() {
  for (const button of list.children) button.setAttribute("aria-current", String(Number(button.dataset.unit) === chosen));
}

function show(number) {
  const unit = at.get(number);
  if (!unit) return;
  chosen = number;
  const asked = word.value.trim().toLowerCase();
  const strip = make("div", null, {class: "strip"}), captions = make("ol");
  for (const [row, code] of unit.images) {
    const figure = make("figure");
    figure.append(picture(row), make("figcaption", code.toFixed(3)));
    strip.append(figure);
  }
  for (const [row, code] of unit.texts) {
    const line = make("li", null, asked && caption(row).toLowerCase().includes(asked) ? {class: "hit"} : {});
    line.append(make("bdi", caption(row)), make("small", ` ${code.toFixed(3)}`));
    captions.append(line);
  }
  const about = `mean activation ${unit.mean.toFixed(4)}` + (unit.intra === null ? "" : `, intra-similarity ${unit.intra.toFixed(3)}`);
  detail.replaceChildren(make("h3", `Concept ${unit.unit}`), make("small", about), strip, captions);
  mark();
}

function chip([number, value]) {
  const unit = at.get(number);
  const button = make("button", null, {type: "button", "data-unit": number});
  button.append(make("bdi", `${number}: ${unit && unit.texts.length ? caption(unit.texts[0][0]) : "no caption"}`), make("small", ` ${value.toFixed(2)}`));
  button.addEventListener("click", () => { show(number); document.getElementById("concepts").scrollIntoView(); });
  return button;
}

for (const pair of data.pairs) {
  const box = make("div", null, {class: "pair"}), side = make("div"), quote = make("q"), chips = make("div", null, {class: "chips"});
  quote.append(make("bdi", pair.text));
  chips.append(...pair.shared.map(chip));
  side.append(quote, make("small", pair.shared.length ? ` row ${pair.row}` : ` row ${pair.row}: image and caption share no concept`), chips);
  box.append(picture(pair.row), side);
  document.getElementById("pairs_list").append(box);
}

word.addEventListener("input", search);
search();
if (data.units.length) show(data.units[0].unit);
