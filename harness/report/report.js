"use strict";
// The samples' filters. Model output reaches the page through textContent alone.
(() => {
  const root = document.getElementById("explorer");
  if (!root) return;
  const data = JSON.parse(document.getElementById("sample-data").textContent);
  const STEP = 20, CELLS = 400000, NUMERIC = new Set(["pairs", "statements", "choices"]);
  const field = (name) => root.querySelector(`[name=${name}]`);
  const [topic, format, run, sort, search, flipped] = ["topic", "format", "run", "sort", "search", "flipped"].map(field);
  const list = root.querySelector("ol"), status = root.querySelector("[role=status]"), more = root.querySelector(".more");
  const labels = data.runs.map((one) => one.label);
  const name = (index) => data.names[index];
  const title = (text) => (text.charAt(0).toUpperCase() + text.slice(1)).replaceAll("_", " ");

  const number = (value) => {
    if (value === null || value === undefined) return "\u2013";
    const text = Math.abs(value).toFixed(3);
    return (Number(text) === 0 ? "" : value < 0 ? "\u2212" : "+") + text;
  };
  const prompts = data.prompts.map(([f, t, item, variant, prompt, options, values, texts]) => ({
    format: name(f), topic: name(t), item: name(item), variant: name(variant), prompt: data.texts[prompt],
    options: options.map((text) => data.texts[text]), values, texts,
  }));

  const element = (tag, className, text) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const option = (select, value, text) => {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  };

  const tokens = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];

  // Longest common subsequence of words between the common start and the common end: [kind, text] pieces.
  function changed(before, after) {
    const a = tokens(before), b = tokens(after);
    let start = 0, end = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const old = a.slice(start, a.length - end), now = b.slice(start, b.length - end), width = now.length + 1;
    const pieces = [];
    const add = (kind, text) => {
      const last = pieces[pieces.length - 1];
      if (last && last[0] === kind) last[1] += text; else if (text) pieces.push([kind, text]);
    };
    add("same", a.slice(0, start).join(""));
    if (old.length * now.length > CELLS) {
      add("gone", old.join(""));
      add("new", now.join(""));
    } else {
      const length = new Uint16Array((old.length + 1) * width);
      for (let i = old.length - 1; i >= 0; i--) for (let j = now.length - 1; j >= 0; j--) {
        length[i * width + j] = old[i] === now[j] ? length[(i + 1) * width + j + 1] + 1
          : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
      }
      let i = 0, j = 0;
      while (i < old.length && j < now.length) {
        if (old[i] === now[j]) { add("same", old[i]); i++; j++; }
        else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) add("gone", old[i++]);
        else add("new", now[j++]);
      }
      add("gone", old.slice(i).join(""));
      add("new", now.slice(j).join(""));
    }
    add("same", a.slice(a.length - end).join(""));
    return pieces;
  }

  function side(index, value, pieces, leaveOut) {
    const box = element("div", "side");
    const head = element("h4");
    const dot = element("i", "dot " + data.runs[index].role);
    dot.setAttribute("aria-hidden", "true");
    head.append(dot, labels[index], element("b", "", number(value)));
    const text = element("p", "answer");
    text.dir = "auto";
    for (const [kind, words] of pieces) {
      if (kind === leaveOut) continue;
      if (kind === "same") text.append(words);
      else text.append(element(kind === "gone" ? "del" : "ins", "", words));
    }
    if (!text.textContent) text.textContent = "(empty)";
    box.append(head, text);
    return box;
  }

  function card(one, chosen, reference) {
    const item = element("li"), article = element("article");
    const head = element("h3");
    head.tabIndex = -1;
    head.append(element("span", "", title(one.topic)), " ");
    head.append(element("small", "", [one.format, one.item, one.variant].filter(Boolean).join(" \u00b7 ")), " ");
    const size = element("b");
    if (one.flipped) size.append(element("span", "flip", "flipped"), " ");
    size.append(element("small", "", "change "), number(one.change));
    head.append(size);
    const prompt = element("p", "prompt", one.prompt);
    prompt.dir = "auto";
    const options = element("dl", "options");
    one.options.forEach((said, index) => {
      const answer = element("dd", "", said);
      answer.dir = "auto";
      options.append(element("dt", "", ["Left", "Right"][index]), answer);
    });
    const before = one.texts[reference] === null ? "(not asked)" : data.texts[one.texts[reference]];
    const after = data.texts[one.texts[chosen]];
    const pieces = NUMERIC.has(one.format) ? null : changed(before, after);
    const sides = element("div", "sides");
    sides.append(side(reference, one.values[reference], pieces || [["same", before]], "new"));
    if (chosen !== reference) sides.append(side(chosen, one.values[chosen], pieces || [["same", after]], "gone"));
    article.append(head, prompt, ...(one.options.length ? [options] : []), sides);
    item.append(article);
    return item;
  }

  let found = [], shown = 0, chosen = 0, reference = 0;
  const plain = (count) => count.toLocaleString("en");

  function grow(focus) {
    const from = shown;
    const next = found.slice(from, from + STEP).map((one) => card(one, chosen, reference));
    shown += next.length;
    list.append(...next);
    more.hidden = shown >= found.length;
    more.textContent = `Show ${Math.min(STEP, found.length - shown)} more`;
    const fits = found.length === 1 ? "1 prompt fits" : `${plain(found.length)} prompts fit`;
    status.textContent = found.length ? `${fits}; ${plain(shown)} shown.` : "No prompt fits: widen the filters.";
    if (focus && next.length) next[0].querySelector("h3").focus();
  }

  function sized() {
    chosen = Number(run.value);
    reference = Math.max(0, labels.indexOf(data.runs[chosen].reference));
    const groups = new Map();
    for (const one of prompts) {
      const after = one.values[chosen], before = one.values[reference];
      one.change = after === null || before === null ? null : after - before;
      one.flipped = one.change !== null && before * after < 0;
      if (!groups.has(one.format)) groups.set(one.format, []);
      groups.get(one.format).push(one);
    }
    // Units differ between formats: a size is its rank within the format.
    const size = (one) => (one.change === null ? -1 : Math.abs(one.change));
    for (const group of groups.values()) group.sort((a, b) => size(b) - size(a)).forEach((one, rank) => { one.rank = rank; });
  }

  const text = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const orders = {
    size: (a, b) => a.rank - b.rank || text(a.format, b.format),
    topic: (a, b) => text(a.topic, b.topic) || orders.size(a, b),
    item: (a, b) => text(a.item, b.item) || text(a.format, b.format) || text(a.variant, b.variant),
  };

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (one) => {
      if (!words.length) return true;
      const parts = [one.topic, title(one.topic), one.format, one.item, one.variant, one.prompt, ...one.options];
      for (const index of [reference, chosen]) if (one.texts[index] !== null) parts.push(data.texts[one.texts[index]]);
      const whole = parts.join("\n").toLowerCase();
      return words.every((word) => whole.includes(word));
    };
    found = prompts.filter((one) => one.texts[chosen] !== null && (!topic.value || one.topic === topic.value)
      && (!format.value || one.format === format.value) && (!flipped.checked || one.flipped) && holds(one));
    found.sort(orders[sort.value]);
    shown = 0;
    list.replaceChildren();
    grow(false);
  }

  for (const [select, key] of [[topic, "topic"], [format, "format"]]) {
    for (const value of new Set(prompts.map((one) => one[key]))) option(select, value, title(value));
  }
  data.runs.forEach((one, index) => { if (one.label !== one.reference || labels.length === 1) option(run, index, one.label); });
  const first = data.runs.findIndex((one) => one.role === "tuned");
  if (first >= 0) run.value = String(first);

  for (const select of [topic, format, sort, flipped]) select.addEventListener("change", update);
  run.addEventListener("change", () => { sized(); update(); });
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(update, 150); });
  more.addEventListener("click", () => grow(true));
  root.addEventListener("submit", (event) => event.preventDefault());
  root.addEventListener("reset", () => setTimeout(() => { if (first >= 0) run.value = String(first); sized(); update(); }));

  document.getElementById("static-samples").hidden = true;
  root.hidden = false;
  sized();
  update();
})();

// Paper has no disclosure triangles: what matters is opened for printing and closed again.
(() => {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open], .samples)")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
})();
