// What the curves of a report are made of: records, means, the ends of axes, ticks. Nothing here touches the page.
"use strict";

const finished = (run) => get(run, "status") === "completed";

// Tokens, steps and losses of a run; null where it has no record of this kind of loss.
function curveOf(question, run, kind) {
  const curve = get(run, "curves")[kind];
  return curve && { ...question.grids[curve[0]], losses: curve[1] };
}

// The mean of curves with their lowest and highest, at all tokens that any has, where every one has a value: runs that
// were recorded at other steps are interpolated, never extended.
function meanOf(curves) {
  const out = { tokens: [], losses: [], low: [], high: [] };
  const next = curves.map(() => 0);
  for (const x of [...new Set(curves.flatMap((curve) => curve.tokens))].sort((a, b) => a - b)) {
    const values = [];
    curves.forEach(({ tokens, losses }, k) => {
      while (next[k] < tokens.length && tokens[next[k]] < x) next[k]++;
      const i = next[k];
      if (tokens[i] === x) values.push(losses[i]);
      else if (i > 0 && i < tokens.length)
        values.push(losses[i - 1] + ((losses[i] - losses[i - 1]) * (x - tokens[i - 1])) / (tokens[i] - tokens[i - 1]));
    });
    if (values.length < curves.length) continue;
    out.tokens.push(x);
    out.losses.push(values.reduce((sum, value) => sum + value, 0) / values.length);
    out.low.push(Math.min(...values));
    out.high.push(Math.max(...values));
  }
  return out.tokens.length ? out : null;
}

// Round numbers between two ends, about five; on a log axis powers of ten times 1, 2 and 5 where the range allows.
function ticks(low, high, log) {
  const found = [];
  if (log) {
    const steps = high / low > 1000 ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const step of steps) found.push(step * 10 ** power);
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 2) return inside;
  }
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  return Array.from({ length: 12 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((value) => value <= high);
}

function short(value) {
  for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + letter;
  return String(+value.toPrecision(4));
}

// The ends of both axes. Losses of the first tenth of training would squash the rest, and so would runs that
// diverged: they are left out of the loss axis unless asked for, or nothing else is drawn.
function limits(shown, state) {
  const steady = shown.some(({ run }) => finished(run)) ? shown.filter(({ run }) => finished(run)) : shown;
  const seen = { x: [Infinity, 0], y: [Infinity, -Infinity] };
  for (const { curve } of shown) for (const x of curve.tokens) if (x > 0 || !state.logTokens)
    seen.x = [Math.min(seen.x[0], x), Math.max(seen.x[1], x)];
  const from = state.logTokens ? seen.x[0] : state.whole ? 0 : 0.1 * seen.x[1];
  for (const { curve } of steady) curve.losses.forEach((y, i) => {
    if (curve.tokens[i] >= from && (y > 0 || !state.logLoss)) seen.y = [Math.min(seen.y[0], y), Math.max(seen.y[1], y)];
  });
  if (!state.logTokens) seen.x[0] = 0;
  if (!(seen.x[1] > seen.x[0])) seen.x = [seen.x[1] / 2 || 0.5, seen.x[1] * 2 || 1];
  if (!(seen.y[1] >= seen.y[0])) seen.y = [1, 2];
  const pad = Math.max(0.04 * (seen.y[1] - seen.y[0]), 1e-3 * Math.abs(seen.y[1]), 1e-6);
  return { x: seen.x, y: [state.logLoss ? seen.y[0] * 0.99 : seen.y[0] - pad, seen.y[1] + pad] };
}

function scale([low, high], log, from, to) {
  const of = log ? Math.log : (value) => value;
  return (value) => (log && value <= 0 ? NaN : from + ((of(value) - of(low)) / (of(high) - of(low))) * (to - from));
}

function prepare(target, width, height) {
  const ratio = window.devicePixelRatio || 1, context = target.getContext("2d");
  if (target.width !== Math.round(width * ratio) || target.height !== Math.round(height * ratio)) {
    target.width = Math.round(width * ratio);
    target.height = Math.round(height * ratio);
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
