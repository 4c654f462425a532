// The live part of a report: here its data, its tables of runs, and what starts it; report_series.js and report_curves.js
// come before it in the same element. The page is whole without both. All text comes from the JSON in #data and goes into
// the page as text nodes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const place = Object.fromEntries(data.fields.map((name, i) => [name, i]));
const get = (run, name) => run[place[name]];
const PAGE = 50; // rows of a table at a time
const count = (value) => Math.round(value).toLocaleString("en-US");
const loss = (value) => (Math.abs(value) < 1e4 ? value.toFixed(4) : value.toPrecision(4));

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function checkbox(words, change) {
  const box = element("input", { type: "checkbox", change: () => change(box.checked) });
  return element("label", null, box, " " + words);
}

function table(box, question, curves) {
  const state = { by: null, down: false, words: [], page: 0 };
  const value = (name) => (run) => get(run, name);
  const number = (name, words, format) => {
    const text = (run) => (get(run, name) === null ? "–" : format(get(run, name)));
    return { words, value: value(name), text, class: "n" };
  };
  const percent = (share) => (100 * share).toFixed(2) + " %";
  const columns = [
    { words: "run", value: value("id"), cell: configLink },
    { words: "arm", value: (run) => question.arms[get(run, "arm")].name },
    { words: "seed", value: value("seed") },
    question.runs.some(value("stage")) ? { words: "stage", value: value("stage") } : null,
    { words: "status", value: value("status") },
    number("val_loss", "val. loss", loss),
    number("train_loss", "train loss", loss),
    number("init_val_loss", "at init", loss),
    question.tasks ? number("val_accuracy", "accuracy", percent) : number("val_bpb", "bits/byte", loss),
    number("tokens", "tokens", count),
    number("tokens_per_param", "tokens/parameter", (value) => String(Number(value.toPrecision(3)))),
    number("wall_seconds", "seconds", count),
    question.numerics.length > 1 ? { words: "numerics", value: (run) => question.numerics[get(run, "numerics")] } : null,
    { words: "command", value: command, cell: shownCommand },
  ].filter(Boolean);
  const words = (run) => columns.map((column) => column.value(run) ?? "").join(" ").toLowerCase();
  const rows = question.runs.map((run) => ({ run, text: words(run) }));
  let found = rows;

  function command(run) {
    return ["python -m lmablate.train", ...get(run, "words").map((i) => question.words[i])].join(" ");
  }
  function shownCommand(run) {
    return element("details", { class: "command" }, element("summary", null, "show"), element("code", null, command(run)));
  }
  function configLink(run) {
    const id = get(run, "id"), words = element("code", null, id), folder = data.folders[get(run, "folder")];
    const href = `${folder}/${encodeURIComponent(id)}/config.yaml`;
    const click = () => {
      curves.pin(run);
      render();
    };
    const shown = folder === undefined ? words : element("a", { href, title: "its configuration" }, words);
    if (!curves) return shown;
    const button = element("button", {
      type: "button", class: "show", click, disabled: !get(run, "curves").some(Boolean), "aria-pressed": String(curves.pinned() === run),
      "aria-label": "curve of run " + id,
    }, "curve");
    return element("span", null, shown, " ", button);
  }
  function compare(a, b) {
    const [x, y] = [state.by.value(a.run), state.by.value(b.run)];
    if (x === null || y === null) return (x === null) - (y === null); // what is not known comes last, either way
    return (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true })) * (state.down ? -1 : 1);
  }
  function cell(column, run) {
    const bad = column.words === "status" && !finished(run);
    const content = column.cell ? column.cell(run) : column.text ? column.text(run) : column.value(run) ?? "–";
    return element("td", { class: bad ? "bad" : column.class || null }, content);
  }
  function select() {
    found = rows.filter(({ text }) => state.words.every((word) => text.includes(word)));
    if (state.by) found.sort(compare);
    state.page = 0;
    render();
  }
  function render() {
    const from = state.page * PAGE, some = found.slice(from, from + PAGE);
    body.replaceChildren(...some.map(({ run }) => element("tr", null, ...columns.map((column) => cell(column, run)))));
    columns.forEach((column, i) => {
      const sorted = column !== state.by ? "none" : state.down ? "descending" : "ascending";
      heads[i].setAttribute("aria-sort", sorted);
    });
    const range = `${count(from + 1)} to ${count(from + some.length)} of ${count(found.length)} runs`;
    const all = found.length < rows.length ? `, out of ${count(rows.length)}` : "";
    status.textContent = found.length ? range + all : `none of ${count(rows.length)} runs`;
    back.disabled = !state.page;
    on.disabled = from + PAGE >= found.length;
  }
  function turn(by) {
    state.page += by;
    render();
  }

  function sort(column) {
    state.down = state.by === column && !state.down;
    state.by = column;
    select();
  }

  const heads = columns.map((column) => {
    const button = element("button", { type: "button", click: () => sort(column) }, column.words);
    return element("th", { class: column.class || null }, button);
  });
  const body = element("tbody"), status = element("span", { role: "status" });
  const input = () => {
    state.words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    select();
  };
  const filter = element("input", { type: "search", placeholder: "filter: words that a row must have", "aria-label": "Filter runs", input });
  const back = element("button", { type: "button", click: () => turn(-1) }, "back");
  const on = element("button", { type: "button", click: () => turn(1) }, "next");
  box.append(element("div", { class: "tools" }, filter, status, back, on),
    element("div", { class: "scroll" }, element("table", null, element("thead", null, element("tr", null, ...heads)), body)));
  select();
}

data.questions.forEach((question, i) => {
  const box = (name) => document.querySelector(`.${name}[data-question="${i}"]`);
  table(box("runs"), question, box("chart") && chart(box("chart"), question));
});
const still = [...document.querySelectorAll("details.still")]; // on paper the still figures stand, as without a script
const folded = [...still, ...document.querySelectorAll("details.paper, details.part")];
const show = (some, open) => () => some.forEach((one) => { one.open = open; });
show(still, false)();
window.addEventListener("beforeprint", show(folded, true));
window.addEventListener("afterprint", show(folded, false));
