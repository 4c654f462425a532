// Loss curves to point at, on a canvas: means of arms with bands, single runs on demand.
const FIRST = 12; // arms drawn at first, the best ones
const MARKED = 20; // records of a curve that are marked one by one
const NEAR = 48; // pixels between the pointer and a curve that it means
const DASHES = [[], [7, 3], [2, 3]], BORDERS = ["solid", "dashed", "dotted"];

function chart(box, question) {
  const state = { kind: 0, logTokens: false, logLoss: false, singles: false, whole: false, pinned: null, at: null };
  const arms = question.arms.map((arm, number) => ({ ...arm, number, runs: [] })).filter((arm) => arm.turn !== undefined);
  question.runs.slice(0, question.evaluated).forEach((run) => arms[get(run, "arm")].runs.push(run));
  const on = new Set(arms.slice(0, FIRST));
  const canvas = element("canvas", { tabindex: 0, role: "img" });
  const glass = element("canvas", { class: "glass", "aria-hidden": "true" }); // what the pointer means, over the curves
  const tip = element("div", { class: "tip", role: "status", hidden: true });
  const plot = element("div", { class: "plot" }, canvas, glass, tip);
  const legend = element("div", { class: "legend", role: "group", "aria-label": "Arms" });
  let view = null, means = new Map(), waiting = false;

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const candidates = () => {
    const runs = arms.filter((arm) => on.has(arm)).flatMap((arm) => arm.runs);
    return (state.pinned && !runs.includes(state.pinned) ? [...runs, state.pinned] : runs)
      .map((run) => ({ run, curve: curveOf(question, run, state.kind) })).filter(({ curve }) => curve);
  };
  function meanFor(arm) {
    const key = arm.number + "/" + state.kind;
    if (!means.has(key))
      means.set(key, meanOf(arm.runs.filter(finished).map((run) => curveOf(question, run, state.kind)).filter(Boolean)));
    return means.get(key);
  }

  function path(context, xs, ys, first = true) {
    let pen = first;
    xs.forEach((x, i) => {
      const [px, py] = [view.x(x), view.y(ys[i])];
      if (!Number.isFinite(px) || !Number.isFinite(py)) return;
      if (pen) context.moveTo(px, py);
      else context.lineTo(px, py);
      pen = false;
    });
  }

  function line(context, curve, look, width) {
    context.beginPath();
    context.setLineDash(DASHES[look.turn]);
    context.lineWidth = width;
    path(context, curve.tokens, curve.losses);
    context.stroke();
    context.setLineDash([]);
  }

  function dot(context, x, y, radius) {
    if (!Number.isFinite(x + y)) return;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fill();
  }

  function axes(context, { left, right, top, bottom, ends }) {
    context.font = "12px " + getComputedStyle(document.body).fontFamily;
    context.strokeStyle = color("line");
    context.fillStyle = color("muted");
    context.lineWidth = 1;
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of ticks(...ends.y, state.logLoss)) {
      context.beginPath();
      context.moveTo(left, view.y(value));
      context.lineTo(right, view.y(value));
      context.stroke();
      context.fillText(short(value), left - 7, view.y(value));
    }
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const value of ticks(...ends.x, state.logTokens)) context.fillText(short(value), view.x(value), bottom + 7);
    context.fillText("training tokens" + (state.logTokens ? ", log" : ""), (left + right) / 2, bottom + 25);
    context.save();
    context.translate(12, (top + bottom) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText(`${data.kinds[state.kind]} loss, nats per token` + (state.logLoss ? ", log" : ""), 0, -6);
    context.restore();
  }

  function draw() {
    waiting = false;
    const width = plot.clientWidth, height = plot.clientHeight;
    if (!width || !height) return;
    const shown = candidates(), ends = limits(shown, state), left = 58, right = width - 12, top = 8, bottom = height - 44;
    const [x, y] = [scale(ends.x, state.logTokens, left, right), scale(ends.y, state.logLoss, bottom, top)];
    view = { x, y, left, right, top, bottom, width, height, shown };
    const context = prepare(canvas, width, height);
    if (!shown.length) {
      context.fillStyle = color("muted");
      context.font = "14px " + getComputedStyle(document.body).fontFamily;
      context.fillText(on.size ? "No training records to draw." : "No arm is chosen.", left, 40);
      return point(null);
    }
    axes(context, { left, right, top, bottom, ends });
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left + 12, bottom);
    context.clip();
    for (const arm of arms.filter((arm) => on.has(arm))) drawArm(context, arm);
    context.restore();
    const what = state.singles ? "every run" : "mean of each arm's finished runs, with the lowest and highest";
    canvas.setAttribute("aria-label", `${data.kinds[state.kind]} loss against training tokens, ${on.size} of ${arms.length} arms: ` +
      `${what}. Arrow keys go from record to record and from run to run.`);
    return point(state.at);
  }

  function drawArm(context, arm) {
    context.strokeStyle = context.fillStyle = color("c" + arm.hue);
    const mean = state.singles ? null : meanFor(arm);
    if (mean) {
      context.globalAlpha = 0.16;
      context.beginPath();
      path(context, mean.tokens, mean.high);
      path(context, [...mean.tokens].reverse(), [...mean.low].reverse(), false);
      context.fill();
      context.globalAlpha = 1;
      line(context, mean, arm, 1.8);
      if (mean.tokens.length <= MARKED) mean.tokens.forEach((x, i) => dot(context, view.x(x), view.y(mean.losses[i]), 2.8));
    }
    for (const run of arm.runs) {
      if (mean && finished(run)) continue;
      const curve = curveOf(question, run, state.kind);
      if (!curve) continue;
      context.globalAlpha = 0.75;
      line(context, curve, arm, 1);
      context.globalAlpha = 1;
      if (finished(run)) continue;
      const last = curve.tokens.length - 1; // a diverged run ends in a cross, at the top where it left the axes
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.font = "bold 15px sans-serif";
      context.fillText("✕", view.x(curve.tokens[last]), Math.max(view.top + 5, view.y(curve.losses[last]) || 0));
    }
  }

  const later = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };

  // Marks a record of a run and says what it is; null marks only a run that was asked for in the table.
  function point(at) {
    state.at = at && view.shown.some(({ run }) => run === at.run) ? at : null;
    const context = prepare(glass, view.width, view.height);
    const marked = state.at || (state.pinned && { run: state.pinned, i: -1 });
    const found = marked && view.shown.find(({ run }) => run === marked.run);
    tip.hidden = !found;
    if (!found) return;
    const { run, curve } = found, arm = arms[get(run, "arm")] || { turn: 0 };
    const i = marked.i < 0 ? curve.tokens.length - 1 : Math.min(marked.i, curve.tokens.length - 1);
    const x = view.x(curve.tokens[i]), y = Math.min(view.bottom, Math.max(view.top, view.y(curve.losses[i])));
    context.save();
    context.beginPath();
    context.rect(view.left, 0, view.right - view.left, view.bottom);
    context.clip();
    context.strokeStyle = arm.hue === undefined ? color("ink") : color("c" + arm.hue);
    line(context, curve, arm, 2.6);
    context.restore();
    context.fillStyle = color("paper");
    context.strokeStyle = color("ink");
    context.lineWidth = 2;
    dot(context, x, y, 5);
    context.stroke();
    say(run, curve, i, arm);
    tip.style.left = Math.max(0, Math.min(x + 14, view.width - tip.offsetWidth)) + "px";
    tip.style.top = (y > view.height / 2 ? y - tip.offsetHeight - 12 : y + 14) + "px";
  }

  function say(run, curve, i, arm) {
    const stage = get(run, "stage"), at = get(run, "diverged_at_step");
    const lines = [
      `run ${get(run, "id")}, seed ${get(run, "seed")}` + (stage && stage !== "evaluate" ? `, ${stage}` : ""),
      `step ${count(curve.steps[i])}, ${count(curve.tokens[i])} tokens`,
      `${data.kinds[state.kind]} loss ${loss(curve.losses[i])} nats per token`,
    ];
    const mean = arm.runs && finished(run) && meanFor(arm), k = mean ? mean.tokens.indexOf(curve.tokens[i]) : -1;
    if (k >= 0 && arm.runs.length > 1)
      lines.push(`arm's mean ${loss(mean.losses[k])}, ${loss(mean.low[k])} to ${loss(mean.high[k])}`);
    if (!finished(run)) lines.push(get(run, "status") + (at === null ? "" : ` at step ${count(at)}`));
    tip.replaceChildren(element("b", null, question.arms[get(run, "arm")].name), ...lines.map((words) => element("div", null, words)));
  }

  // The record meant by the pointer: of the nearest stretch of a curve, the nearer end.
  function nearest(event) {
    const bounds = canvas.getBoundingClientRect(), px = event.clientX - bounds.left, py = event.clientY - bounds.top;
    let best = null, least = NEAR * NEAR;
    for (const { run, curve } of view.shown) {
      let [x0, y0] = [NaN, NaN];
      curve.tokens.forEach((tokens, i) => {
        const x1 = view.x(tokens), y1 = view.y(curve.losses[i]), long = (x1 - x0) ** 2 + (y1 - y0) ** 2;
        const share = long > 0 ? Math.max(0, Math.min(1, ((px - x0) * (x1 - x0) + (py - y0) * (y1 - y0)) / long)) : 1;
        const [x, y] = share < 1 ? [x0 + share * (x1 - x0), y0 + share * (y1 - y0)] : [x1, y1];
        const far = (x - px) ** 2 + (y - py) ** 2;
        if (far < least) [best, least] = [{ run, i: share < 0.5 ? i - 1 : i }, far];
        [x0, y0] = [x1, y1];
      });
    }
    return best;
  }

  function key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (event.key === "Escape") return point(null);
    if (!step || !view.shown.length) return undefined;
    event.preventDefault();
    const shown = view.shown, old = state.at ? shown.findIndex(({ run }) => run === state.at.run) : -1;
    const n = old < 0 ? 0 : (old + step[0] + shown.length) % shown.length, last = shown[n].curve.tokens.length - 1;
    const i = old < 0 ? last : Math.max(0, Math.min(last, state.at.i + step[1]));
    return point({ run: shown[n].run, i });
  }

  function toggle(chosen) {
    on.clear();
    chosen.forEach((arm) => on.add(arm));
    for (const [arm, button] of buttons) button.setAttribute("aria-pressed", on.has(arm));
    later();
  }

  const buttons = new Map(arms.map((arm) => {
    const swatch = element("span", { class: "stroke" });
    swatch.style.borderTop = `3px ${BORDERS[arm.turn]} var(--c${arm.hue})`;
    const click = () => toggle(on.has(arm) ? [...on].filter((other) => other !== arm) : [...on, arm]);
    return [arm, element("button", { type: "button", "aria-pressed": String(on.has(arm)), click }, swatch, arm.name)];
  }));
  legend.append(...buttons.values());
  const set = (name, value) => {
    state[name] = value;
    boxes.whole.firstChild.disabled = state.logTokens; // a log axis shows the start anyway
    later();
  };
  const options = data.kinds.map((kind) => element("option", null, kind + " loss"));
  const kinds = element("select", { "aria-label": "Loss", change: () => set("kind", kinds.selectedIndex) }, ...options);
  const switches = { logTokens: "log tokens", logLoss: "log loss", singles: "single runs", whole: "from the start" };
  const boxes = Object.fromEntries(
    Object.entries(switches).map(([name, words]) => [name, checkbox(words, (checked) => set(name, checked))]));
  const tools = element("div", { class: "tools" }, kinds, ...Object.values(boxes),
    element("button", { type: "button", click: () => toggle(arms) }, "all arms"),
    element("button", { type: "button", click: () => toggle([]) }, "no arms"));
  const note = (arms.length > FIRST ? `${arms.length} arms, best first; the first ${FIRST} are drawn. ` : "") +
    "Lines are means of the runs that finished, bands go from their lowest to their highest, a cross is a run that diverged. " +
    "Point at a curve for its runs." +
    (data.thinned ? ` Curves are thinned to ${data.thinned} records a run.` : "");
  box.append(tools, plot, legend, element("p", { class: "small" }, note));
  canvas.addEventListener("pointermove", (event) => view && point(nearest(event)));
  canvas.addEventListener("pointerdown", (event) => view && point(nearest(event)));
  canvas.addEventListener("pointerleave", () => view && point(null));
  canvas.addEventListener("keydown", (event) => view && key(event));
  canvas.addEventListener("blur", () => view && point(null));
  new ResizeObserver(later).observe(plot);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  return {
    pinned: () => state.pinned,
    pin(run) {
      state.pinned = state.pinned === run ? null : run;
      draw();
      plot.scrollIntoView({ block: "nearest" });
    },
  };
}
