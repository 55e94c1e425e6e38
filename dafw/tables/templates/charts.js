"use strict";

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 10;

/** An element with attributes and children. Strings become text, never markup. */
function make(tag, attributes = {}, ...children) {
  const made = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** About `count` round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) found.push(k * step);
  return found;
}

function written(number) {
  const size = Math.abs(number);
  if (size >= 10000) return size >= 1e6 ? `${+(number / 1e6).toPrecision(3)}M` : `${+(number / 1e3).toPrecision(3)}k`;
  return size && size < 0.001 ? number.toExponential(0) : String(+number.toPrecision(4)).replace("-", "\u2212");
}

/**
 * A figure of curves over steps.
 *
 * series: [{label, x, y, spread, colour, dashed, thin}]; values that are null are left out.
 * options: title; at: the steps with a validation, which get ticks of their own below the axis.
 */
function chart(series, { title, at = [] }) {
  const [width, height, left, right, top, bottom] = [340, 190, 44, 10, 8, 32];
  const drawn = series.map((one) => ({ ...one, points: one.x.map((x, i) => [x, one.y[i], one.spread?.[i] ?? 0]).filter((p) => p[1] !== null) }))
    .filter((one) => one.points.length);
  const all = drawn.flatMap((one) => one.points);
  const figure = make("figure", { class: "chart" }, make("b", {}, title));
  if (!all.length) return make("figure", { class: "chart" }, make("b", {}, title), make("p", { class: "caption" }, "nothing was recorded"));
  let [x0, x1] = [Math.min(...all.map((p) => p[0]), ...at), Math.max(...all.map((p) => p[0]), ...at)];
  let [y0, y1] = [Math.min(...all.map((p) => p[1] - p[2])), Math.max(...all.map((p) => p[1] + p[2]))];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  const room = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  [y0, y1] = [y0 - room, y1 + room];
  const X = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const Y = (y) => top + ((y1 - y) / (y1 - y0)) * (height - top - bottom);
  const image = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}: ${drawn.map((one) => one.label).join("; ")}` });
  for (const y of ticks(y0, y1, 4)) {
    image.append(make("svg:line", { class: "axis", x1: left, x2: width - right, y1: Y(y), y2: Y(y) }));
    image.append(make("svg:text", { x: left - 5, y: Y(y) + 4, "text-anchor": "end" }, written(y)));
  }
  for (const x of ticks(x0, x1, 4)) image.append(make("svg:text", { x: X(x), y: height - 14, "text-anchor": "middle" }, written(x)));
  image.append(make("svg:text", { x: width - right, y: height - 2, "text-anchor": "end" }, "step"));
  image.append(make("svg:line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
  for (const x of new Set(at)) image.append(make("svg:line", { class: "mark", x1: X(x), x2: X(x), y1: height - bottom, y2: height - bottom + 4 }));
  for (const one of drawn) {
    const stroke = `var(--c${one.colour % COLOURS})`;
    const line = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`).join("");
    if (one.points.some((p) => p[2] > 0)) {
      const edge = [...one.points.map(([x, y, s]) => [x, y + s]), ...one.points.map(([x, y, s]) => [x, y - s]).reverse()];
      const band = make("svg:path", { class: "band", d: `${line(edge)}Z` });
      band.style.fill = stroke;
      image.append(band);
    }
    const path = make("svg:path", { class: `${one.dashed ? "dashed" : ""} ${one.thin ? "thin" : ""}`, d: line(one.points) }, make("svg:title", {}, one.label));
    path.style.stroke = stroke;
    image.append(path);
    if (one.points.length <= 40 && !one.thin) {
      for (const [x, y] of one.points) {
        const dot = make("svg:circle", { cx: X(x), cy: Y(y), r: 2.2 }, make("svg:title", {}, `${one.label}, step ${x}: ${written(y)}`));
        dot.style.fill = stroke;
        image.append(dot);
      }
    }
  }
  figure.append(image);
  const named = drawn.filter((one) => one.label !== title);
  if (named.length) figure.append(legend(named));
  return figure;
}

function legend(series) {
  return make("ul", { class: "legend" }, series.map((one) => {
    const line = make("svg:path", { class: `${one.dashed ? "dashed" : ""} ${one.thin ? "thin" : ""}`, d: "M0 4H22" });
    line.style.stroke = `var(--c${one.colour % COLOURS})`;
    return make("li", {}, make("svg:svg", { viewBox: "0 0 22 8", "aria-hidden": "true" }, line), one.label);
  }));
}
