const $ = (query, within = document) => [...within.querySelectorAll(query)];
const [data] = $("#data").map((one) => JSON.parse(one.textContent));
let shots = null;
const arrow = (task) => task.replace("->", " \u2192 ").replaceAll(",", ", ");
const mean = (values) => values.reduce((sum, one) => sum + one, 0) / values.length;
const cellOf = (row, task) => data.cells[`${row},${task}`];

/** Mean and standard deviation over the runs of a cell at each validation. */
function overSeeds(cell) {
  const found = new Map();
  for (const run of cell?.runs ?? []) (run.at ?? []).forEach((step, i) => {
    if (run.test[i] !== null) found.set(step, [...(found.get(step) ?? []), run.test[i]]);
  });
  const x = [...found.keys()].sort((a, b) => a - b);
  const y = x.map((step) => mean(found.get(step)));
  const spread = x.map((step, i) => {
    const held = found.get(step);
    return held.length > 1 ? Math.sqrt(held.reduce((sum, one) => sum + (one - y[i]) ** 2, 0) / (held.length - 1)) : 0;
  });
  return { x, y, spread };
}

/** A row is drawn in the colour of its method: a control of one method has that method's, and is dashed. */
function look(row) {
  const methods = Object.keys(data.controls).map(Number).filter((one) => data.controls[one] === row);
  const alone = methods.length === 1 && !(row in data.controls);
  return { colour: alone ? methods[0] : row, dashed: methods.length > 0 };
}

// ---- sorting and filtering

/** Kinds of lines that can be hidden, by class. */
const KINDS = { control: "controls", gain: "minus control", published: "published" };

function tools() {
  const text = (id) => make("label", {}, `${id} `, make("input", { type: "search", id, placeholder: "all", input: filter }));
  const there = Object.keys(KINDS).filter((kind) => $(`table.grid tr.${kind}`).length);
  const boxes = there.map((value) => make("label", {}, make("input", { type: "checkbox", class: "kind", value, checked: true, input: filter }), ` ${KINDS[value]}`));
  $(".sub")[0].after(make("div", { class: "tools" }, text("methods"), text("tasks"), boxes, make("output", { id: "shown", "aria-live": "polite" })));
}

const number = (text) => parseFloat(text.replace("\u2212", "-").replaceAll(",", ""));

function sortable(table) {
  const heads = $("thead th", table);
  const first = $("tbody", table);
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", click: () => {
      const now = head.getAttribute("aria-sort");
      const next = column === 0 ? { null: "ascending", ascending: "descending" }[now] : { null: "descending", descending: "ascending" }[now];
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const key = (body) => body.rows[0].cells[column].textContent.trim();
      const compare = (a, b) => {
        if (column === 0) return sign * key(a).localeCompare(key(b));
        const [x, y] = [number(key(a)), number(key(b))];
        return Number.isNaN(x) || Number.isNaN(y) ? Number.isNaN(x) - Number.isNaN(y) : sign * (x - y);
      };
      table.append(...(next ? [...first].sort(compare) : first));
    } }, ...head.childNodes);
    head.append(button);
  });
}

function filter() {
  const [method, task] = ["methods", "tasks"].map((id) => document.getElementById(id).value.trim().toLowerCase());
  const hidden = $(".kind").filter((one) => !one.checked).map((one) => one.value);
  const fits = (text, wanted) => !wanted || wanted.split(/\s+/).every((word) => text.toLowerCase().includes(word));
  let shown = 0;
  for (const table of $("table.grid")) {
    const columns = $("thead th", table).map((head, i) => !i || head.matches(".sum, table:not(.tasks) *") || fits(head.textContent, task));
    for (const body of table.tBodies) {
      body.hidden = !fits(body.rows[0].cells[0].textContent, method);
      if (table === $("table.grid")[0]) shown += !body.hidden;
    }
    for (const line of table.rows) {
      if (line.parentNode.tagName !== "THEAD") line.hidden = hidden.includes(line.className);
      [...line.cells].forEach((cell, i) => { cell.hidden = !columns[i]; });
    }
  }
  const count = $("table.grid")[0]?.tBodies.length ?? 0;
  document.getElementById("shown").textContent = method ? `${shown} of ${count} methods` : "";
  training((row) => fits(data.rows[row], method), (column) => fits(arrow(data.tasks[column]), task) || fits(data.tasks[column], task));
}

// ---- curves of all methods

function training(wantsRow = () => true, wantsTask = () => true) {
  const [section] = $("#training");
  const charts = [];
  let [spread, dashed] = [false, false];
  data.tasks.forEach((task, column) => {
    if (!wantsTask(column)) return;
    const series = data.rows.map((label, row) => ({ label, ...look(row), ...overSeeds(cellOf(row, column)), row }))
      .filter((one) => one.x.length && wantsRow(one.row));
    spread ||= series.some((one) => one.spread.some((s) => s > 0));
    dashed ||= series.some((one) => one.dashed);
    if (series.length) charts.push(chart(series, { title: arrow(task), at: series.flatMap((one) => one.x) }));
  });
  $(".charts", section)[0].replaceChildren(...charts);
  const said = [`The target's test ${data.metric} in % at each validation (ticks below)${spread ? ", mean and one std over seeds" : ""}; nothing is selected by it.`];
  if (dashed) said.push("Dashed: a control.");
  $(".caption", section)[0].textContent = said.join(" ");
  section.hidden = !charts.length;
  return charts.length > 0;
}

// ---- what a number opens

function open(row, task) {
  const [dialog] = $("#cell");
  const cell = cellOf(row, task);
  const control = data.controls[row];
  const title = `${data.rows[row]}, ${arrow(data.tasks[task])}`;
  const curves = cell.runs.filter((run) => run.at?.length);
  const series = curves.map((run) => ({ label: `seed ${run.seed}`, x: run.at, y: run.test, ...look(row), dashed: false, thin: curves.length > 1 }));
  if (curves.length > 1) series.push({ label: "mean", ...overSeeds(cell), ...look(row), dashed: false, spread: null });
  const beside = control === undefined ? { x: [] } : overSeeds(cellOf(control, task));
  if (beside.x.length) series.push({ label: `control: ${data.rows[control]}`, ...beside, spread: null, colour: 7, dashed: true });
  const seeds = make("div", { class: "seeds", role: "group", "aria-label": "seeds" });
  const body = make("div", { id: "run" });
  cell.runs.forEach((run, i) => seeds.append(make("button", { type: "button", "aria-pressed": String(!i), click: (event) => {
    $("button", seeds).forEach((one) => one.setAttribute("aria-pressed", String(one === event.currentTarget)));
    body.replaceChildren(...oneRun(row, task, run));
  } }, `seed ${run.seed}`)));
  body.append(...oneRun(row, task, cell.runs[0]));
  const between = control === undefined ? [] : compared(row, control, task, true);
  dialog.replaceChildren(
    make("header", {}, make("h2", { id: "cell-title" }, title), make("button", { type: "button", class: "close", click: () => dialog.close() }, "Close")),
    ...(series.length ? [make("div", { class: "charts" }, chart(series, { title: `target test ${data.metric}, %`, at: curves.flatMap((run) => run.at) }), scores(cell))] : []),
    seeds, body,
    ...(between.length ? [make("h3", {}, `Configuration beside ${data.rows[control]}`), between[0]] : []),
    make("details", {}, make("summary", {}, "Complete configuration"), settings([["", configuration(row, task)]])),
  );
  dialog.showModal();
  dialog.scrollTop = 0;
}

/** The percents of a cell by criterion and seed. */
function scores(cell) {
  const runs = cell.runs.filter((run) => run.scores);
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.scores)))];
  const line = (name) => make("tr", {}, make("th", { scope: "row" }, name), runs.map((run) => make("td", {}, name in run.scores ? run.scores[name].toFixed(1) : "\u2013")));
  return make("figure", { class: "chart" }, make("b", {}, "by checkpoint, %"), make("div", { class: "wide" }, make("table", { class: "scores" },
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "criterion"), runs.map((run) => make("th", { scope: "col" }, `seed ${run.seed}`)))),
    make("tbody", {}, names.map(line)))));
}

function oneRun(row, task, run) {
  shots ??= JSON.parse($("#pictures")[0].textContent);
  const pictures = Object.entries(shots[`${row},${task},${run.seed}`] ?? {});
  const logged = (group, colour) => Object.entries(run.logged?.[group] ?? {}).map(([name, y]) => chart([{ label: name, x: run.logged.at, y, colour }], { title: name, at: run.at }));
  const [losses, diagnostics] = [logged("train", 0), logged("diagnostics", 2)];
  const validators = Object.entries(run.validators ?? {}).map(([name, y]) => chart([{ label: name, x: run.at, y, colour: 7 }], { title: name, at: run.at }));
  const part = (heading, ...content) => content.length ? [make("h3", {}, heading), ...content] : [];
  return [
    run.steps === undefined ? make("p", { class: "caption" }, "This run has no result.") : make("p", { class: "caption" }, `${run.steps.toLocaleString("en")} steps, ${Math.round(run.seconds)} s`),
    ...part("Pictures", ...(pictures.length ? [make("div", { class: "shots" }, pictures.map(([name, src]) => make("figure", {}, make("img", { src, alt: name }), make("figcaption", {}, name))))] : [])),
    ...part("Terms of the loss", ...(losses.length ? [make("div", { class: "charts" }, losses)] : [])),
    ...part("Validators", ...(validators.length ? [make("div", { class: "charts" }, validators)] : [])),
    ...part("Diagnostics", ...(diagnostics.length ? [make("div", { class: "charts" }, diagnostics)] : [])),
    ...part("Command", make("pre", { tabindex: 0 }, run.command)),
    ...part("End of the log", ...(run.log ? [make("pre", { tabindex: 0 }, run.log)] : [])),
    ...part("Files", ...(run.files.length ? [make("p", {}, run.files.flatMap(([name, href], i) => [i ? " \u00b7 " : "", make("a", { href }, name)]))] : [])),
  ];
}

// ---- configurations

function configuration(row, task) {
  const own = cellOf(row, task)?.config ?? {};
  return Object.fromEntries(Object.entries({ ...data.config, ...own }).filter(([, value]) => value !== null));
}

/** A table of keys and the values of one configuration or several. */
function settings(columns, keys = Object.keys(columns[0][1])) {
  const heads = columns.some(([name]) => name) ? [make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "key"), columns.map(([name]) => make("th", { scope: "col" }, name))))] : [];
  const line = (key) => make("tr", {}, make("th", { scope: "row" }, key), columns.map(([, values]) => make("td", {}, values[key] ?? "\u2013")));
  return make("div", { class: "card" }, make("table", { class: "settings" }, heads, make("tbody", {}, keys.map(line))));
}

/** What differs between two rows; nothing if the configuration of one is not there. */
function compared(row, other, task, quiet = false) {
  const [ours, theirs] = [row, other].map((one) => configuration(one, task));
  if (![row, other].every((one) => cellOf(one, task))) return quiet ? [] : [make("p", { class: "caption" }, "One of the two has no run of this task.")];
  const keys = [...new Set([...Object.keys(ours), ...Object.keys(theirs)])].filter((key) => ours[key] !== theirs[key]);
  return keys.length ? [settings([[data.rows[row], ours], [data.rows[other], theirs]], keys)] : [make("p", { class: "caption" }, "They do not differ.")];
}

function comparison() {
  const [section] = $("#compare");
  const known = data.rows.map((name, row) => [name, row]).filter(([, row]) => data.tasks.some((_, task) => cellOf(row, task)));
  if (known.length < 2 || !Object.keys(data.config).length) return;
  const choice = (items) => make("select", {}, items.map(([name, value]) => make("option", { value }, name)));
  const [first, second, task] = [known, known, data.tasks.map((name, i) => [arrow(name), i])].map(choice);
  $(".tools", section)[0].append(...Object.entries({ first, second, task }).map(([name, one]) => make("label", {}, `${name} `, one)));
  second.selectedIndex = 1;
  const show = () => $(".card", section)[0].replaceChildren(...compared(+first.value, +second.value, +task.value).flatMap((one) => [...(one.matches(".card") ? one.childNodes : [one])]));
  [first, second, task].forEach((one) => one.addEventListener("change", show));
  show();
  section.hidden = false;
}

// ---- the start

function openers() {
  for (const cell of $("td[data-cell]")) {
    const [row, task] = cell.dataset.cell.split(",").map(Number);
    if (!cellOf(row, task)) continue;
    const label = `${data.rows[row]}, ${arrow(data.tasks[task])}: ${cell.textContent.trim()}`;
    cell.append(make("button", { type: "button", "aria-haspopup": "dialog", "aria-label": label, click: () => open(row, task) }, ...cell.childNodes));
  }
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest?.("table.grid td");
    const [down, across] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    if (!cell || !(down || across)) return;
    const lines = $("tbody tr", cell.closest("table")).filter((line) => line.offsetParent);
    let [line, column] = [lines.indexOf(cell.parentNode) + down, cell.cellIndex + across];
    for (; lines[line]?.cells[column]; line += down, column += across) {
      const [button] = $("button", lines[line].cells[column]);
      if (button?.offsetParent) { button.focus(); event.preventDefault(); return; }
    }
  });
}

$("table.grid").forEach(sortable);
openers();
comparison();
$("#cell")[0].addEventListener("click", (event) => { if (event.target === event.currentTarget) event.currentTarget.close(); });
tools();
$(".hint").forEach((one) => { one.hidden = !$("td button").length; });
if (training()) $(".drawn").forEach((one) => { one.hidden = true; });
