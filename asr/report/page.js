"use strict";
// Whatever comes from the report is put on the page as text, never as markup.
(() => {
  const PAGE = 60;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const utterances = data.utterances;
  let media = null;
  const getMedia = () => (media ??= JSON.parse(byId("media").textContent));

  function el(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // ------------------------------------------------------------------ theme

  const root = document.documentElement;
  byId("theme").addEventListener("click", () => {
    const isDark = getComputedStyle(root).colorScheme === "dark";
    root.dataset.theme = isDark ? "light" : "dark";
    for (const draw of redraws) draw();
  });
  const redraws = new Set();

  // ------------------------------------------------------------------ filter and order

  const NAMES = { s: "substituted", d: "deleted", i: "inserted" };
  const numErrors = (u) => u.sdi[0] + u.sdi[1] + u.sdi[2];
  const rate = (u) => numErrors(u) / Math.max(1, u.words);
  const confidence = (u) => (u.times.length ? u.times.reduce((sum, w) => sum + w[3], 0) / u.times.length : 1);
  const compareText = new Intl.Collator("en", { numeric: true }).compare;

  for (const [index, u] of utterances.entries()) {
    u.index = index;
    const words = u.pairs.map((pair) => (pair[0] === "e" ? pair[1] : `${pair[1]} ${pair[2]}`));
    const sides = [u.pairs.map((p) => p[1]), u.pairs.map((p) => (p[0] === "e" ? p[1] : p[2]))];
    u.text = [u.id, u.speaker, words.join(" "), ...sides.map((s) => s.filter(Boolean).join(" "))].join("\n").toLowerCase();
    u.confidence = confidence(u);
  }

  const ORDERS = {
    errors: (a, b) => numErrors(b) - numErrors(a) || rate(b) - rate(a),
    rate: (a, b) => rate(b) - rate(a) || numErrors(b) - numErrors(a),
    confidence: (a, b) => a.confidence - b.confidence,
    longest: (a, b) => b.seconds - a.seconds,
    shortest: (a, b) => a.seconds - b.seconds,
    id: (a, b) => compareText(a.id, b.id),
    manifest: (a, b) => a.index - b.index,
  };

  let pair = null; // one kind of error, chosen in the tables
  const inputs = ["search", "operation", "cause", "slice", "order"].map(byId);
  const [search, operation, cause, slice, order] = inputs;

  for (const key of new Set(utterances.flatMap((u) => (u.blame ? [u.blame.cause, ...u.blame.regions.map((r) => r[2])] : [])))) {
    cause.append(new Option(data.causes[key] ?? key, key));
  }
  cause.hidden = cause.options.length < 2;
  data.slices.forEach((field, place) => {
    const group = document.createElement("optgroup");
    group.label = data.sliceNames[place];
    const values = [...new Set(utterances.map((u) => u.slices[place]))].sort(compareText);
    for (const value of values) group.append(new Option(value || "(none)", `${place}\n${value}`));
    slice.append(group);
  });
  slice.hidden = !data.slices.length;

  function wanted() {
    const text = search.value.trim().toLowerCase();
    const op = operation.value;
    const [place, ...rest] = slice.value.split("\n");
    const value = rest.join("\n");
    return utterances.filter(
      (u) =>
        (!text || u.text.includes(text)) &&
        (!op || (op === "any" ? numErrors(u) > 0 : op === "none" ? numErrors(u) === 0 : u.sdi["sdi".indexOf(op)] > 0)) &&
        (!cause.value || (u.blame && (u.blame.cause === cause.value || u.blame.regions.some((r) => r[2] === cause.value)))) &&
        (!slice.value || u.slices[Number(place)] === value) &&
        (!pair || u.pairs.some((p) => p[0] === pair.op && p[1] === pair.ref && p[2] === pair.hyp)),
    );
  }

  // ------------------------------------------------------------------ list

  const list = byId("list");
  const more = byId("more");
  let shown = [];
  let next = 0;

  function refresh() {
    shown = wanted().sort((a, b) => ORDERS[order.value](a, b) || a.index - b.index);
    for (const player of list.querySelectorAll("audio")) URL.revokeObjectURL(player.src);
    list.replaceChildren();
    redraws.clear();
    next = 0;
    byId("found").textContent = `${shown.length.toLocaleString("en")} of ${utterances.length.toLocaleString("en")} utterances`;
    const clear = byId("clear");
    clear.hidden = !pair;
    if (pair) {
      const what = [pair.ref, pair.hyp].filter(Boolean).map((word) => `\u2068${word}\u2069`).join(" → ");
      clear.textContent = `${NAMES[pair.op]}: ${what}  ×`;
    }
    append();
  }

  function append() {
    const rows = document.createDocumentFragment();
    for (const u of shown.slice(next, next + PAGE)) rows.append(row(u));
    next = Math.min(next + PAGE, shown.length);
    list.append(rows);
    more.hidden = next >= shown.length;
    more.textContent = `Show ${Math.min(PAGE, shown.length - next)} more of ${shown.length - next}`;
  }

  function row(u) {
    const item = el("li");
    const head = el("button", "head");
    head.type = "button";
    head.setAttribute("aria-expanded", "false");
    const id = el("span", "id");
    id.append(el("bdi", "", u.id));
    head.append(id);
    if (u.speaker) {
      const speaker = el("span", "", "speaker ");
      speaker.append(el("bdi", "", u.speaker));
      head.append(speaker);
    }
    head.append(el("span", "", `${u.seconds.toFixed(1)} s`));
    const count = numErrors(u);
    const counts = ["S", "D", "I"].map((letter, k) => (u.sdi[k] ? `${u.sdi[k]} ${letter}` : "")).filter(Boolean);
    head.append(el("span", "", `${count} of ${u.words} words wrong${counts.length ? ` (${counts.join(", ")})` : ""}`));
    if (u.blame) head.append(el("span", "blame", data.causes[u.blame.cause]));
    head.addEventListener("click", () => {
      const isOpen = head.getAttribute("aria-expanded") === "true";
      head.setAttribute("aria-expanded", String(!isOpen));
      if (isOpen) item.querySelector(".detail").remove();
      else item.append(detail(u));
    });
    item.append(head, aligned(u));
    return item;
  }

  function aligned(u) {
    const line = el("div", "aligned");
    line.dir = "auto";
    for (const [op, ref, hyp] of u.pairs) {
      const cell = el("span", `pair ${op}`);
      const above = el("span", ref ? "ref" : "gap", ref || undefined);
      const below = el("span", op === "e" || hyp ? "hyp" : "gap", op === "e" ? ref : hyp || undefined);
      if (op !== "e") {
        (op === "d" ? above : below).append(el("sup", "", op.toUpperCase()));
        cell.title = NAMES[op];
      }
      cell.append(above, below);
      line.append(cell);
    }
    if (!u.pairs.length) line.append(el("span", "fine", "no words"));
    return line;
  }

  // ------------------------------------------------------------------ one utterance

  const nats = (value) => (value === null ? "impossible" : value.toFixed(2).replace("-", "−"));
  const sum = (scores) => (scores.includes(null) ? null : scores[0] + scores[1]);

  function detail(u) {
    const box = el("div", "detail");
    const { sounds, pictures } = getMedia();
    let player = null;
    if (sounds[u.index]) {
      const [type, text] = sounds[u.index];
      player = el("audio");
      player.controls = true;
      player.src = URL.createObjectURL(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], { type }));
      box.append(player);
    } else {
      box.append(el("p", "fine", "The page does not hold this recording (audio_mib includes more)."));
    }
    const seek = (seconds) => {
      if (!player) return;
      player.currentTime = seconds;
      player.play().catch(() => {}); // closed before it could begin
    };
    if (pictures[u.index]) box.append(tracks(u, pictures[u.index], player, seek));
    else if (u.times.length) {
      const only = el("div", "tracks");
      only.append(el("div", "name", "heard"), track(u.times, u.seconds, seek));
      box.append(only);
    }
    if (u.blame) box.append(...blame(u.blame));
    const facts = [u.path, u.offset ? `from ${u.offset} s` : "", u.score === null ? "" : `decoder score ${nats(u.score)}`];
    box.append(el("p", "fine", facts.filter(Boolean).join(" · ")));
    if (data.checkpoint && !u.offset) {
      const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
      const reference = u.pairs.map((p) => p[1]).filter(Boolean).join(" ");
      const options = [`checkpoint=${data.checkpoint}`, `audio=${u.path}`, `text=${reference}`];
      box.append(el("pre", "", `python -m asr.explain ${options.map(quote).join(" ")}`));
    }
    return box;
  }

  function blame(found) {
    const nodes = [el("h4", "", `Cause: ${data.causes[found.cause]}`)];
    if (found.reason) nodes.push(el("p", "", found.reason));
    const scores = table(["log score (nats)", "acoustic", "text", "total"]);
    for (const side of ["reference", "hypothesis"]) addRow(scores, [side], [...found[side], sum(found[side])].map(nats));
    nodes.push(scores);
    if (found.regions.length) {
      nodes.push(el("h4", "", "What writing the reference there would change (nats)"));
      const regions = table(["said", "recognised", "acoustic", "text", "cause"]);
      for (const [ref, hyp, why, acoustic, text] of found.regions) {
        addRow(regions, [ref || "–", hyp || "–"], [nats(acoustic), nats(text)], data.causes[why]);
      }
      nodes.push(regions);
    }
    return nodes;
  }

  function table(names) {
    const made = el("table");
    const head = made.createTHead().insertRow();
    names.forEach((name) => head.append(el("th", ["acoustic", "text", "total", "cause"].includes(name) ? "num" : "", name)));
    made.createTBody();
    return made;
  }

  function addRow(made, texts, numbers, last) {
    const line = made.tBodies[0].insertRow();
    for (const text of texts) line.insertCell().append(el("bdi", "", text));
    for (const number of numbers) line.append(el("td", "num", number));
    if (last) line.append(el("td", "num", last));
  }

  function tracks(u, picture, player, seek) {
    const box = el("div", "tracks");
    const cursors = [];
    const add = (name, content) => {
      box.append(typeof name === "string" ? el("div", "name", name) : name, content);
    };
    add("said", track(picture.reference, u.seconds, seek));
    add("heard", track(u.times, u.seconds, seek));
    const drawn = (className, source, secondsPerColumn, height) => {
      const frame = el("div", `picture ${className}`);
      if (height) frame.style.height = height;
      const canvas = el("canvas");
      const cursor = el("div", "cursor");
      cursor.hidden = true;
      cursors.push(cursor);
      frame.append(canvas, cursor);
      frame.addEventListener("click", (event) => seek((event.offsetX / frame.clientWidth) * u.seconds));
      paint(canvas, source, u.seconds / secondsPerColumn);
      return frame;
    };
    if (picture.spectrogram) add("features", drawn("spectrogram", picture.spectrogram, picture.column));
    if (picture.posteriors) {
      const names = el("div", "rows");
      names.append(...picture.tokens.map((token) => el("span", "", token)));
      add(names, drawn("posteriors", picture.posteriors, picture.frame, `${0.8 * picture.tokens.length}rem`));
    }
    const axis = el("div", "axis");
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60].find((s) => u.seconds / s <= 10) ?? 120;
    for (let t = 0; t < u.seconds - 0.7 * step; t += step) at(axis.appendChild(el("span", "", String(Number(t.toFixed(1))))), t, u.seconds);
    at(axis.appendChild(el("span", "", `${u.seconds.toFixed(1)} s`)), u.seconds, u.seconds);
    add("", axis);
    if (player) {
      const follow = () => {
        for (const cursor of cursors) {
          cursor.hidden = false;
          at(cursor, player.currentTime, u.seconds);
        }
        if (!player.paused && box.isConnected) requestAnimationFrame(follow);
      };
      for (const event of ["play", "seeked", "pause"]) player.addEventListener(event, follow);
    }
    return box;
  }

  function at(node, seconds, total) {
    node.style.left = `${(100 * seconds) / total}%`;
    return node;
  }

  function track(words, total, seek) {
    const line = el("div", "track");
    words.forEach(([text, start, end, sure], k) => {
      // The bar is the word's time; its name may reach to the next word.
      const room = Math.max((words[k + 1]?.[1] ?? total) - start, end - start, 0.01);
      const word = at(el("span"), start, total);
      word.style.width = `${(100 * room) / total}%`;
      word.title = `${text}  ${start.toFixed(2)}–${end.toFixed(2)} s${sure === undefined ? "" : `, confidence ${sure.toFixed(2)}`}`;
      const bar = el("i");
      bar.style.width = `${(100 * (end - start)) / room}%`;
      word.append(bar, el("bdi", "", text));
      word.addEventListener("click", () => seek(start));
      line.append(word);
    });
    return line;
  }

  // Gray values become colours between two of the theme's; columns beyond the end of the audio are cut off.
  function paint(canvas, source, numColumns) {
    const image = new Image();
    const draw = () => {
      const style = getComputedStyle(root);
      const [cold, hot] = ["--cold", "--hot"].map((name) => style.getPropertyValue(name).split(",").map(Number));
      canvas.width = Math.max(1, Math.round(numColumns));
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
      for (let k = 0; k < pixels.data.length; k += 4) {
        const share = pixels.data[k] / 255;
        for (let c = 0; c < 3; c++) pixels.data[k + c] = cold[c] + share * (hot[c] - cold[c]);
      }
      context.putImageData(pixels, 0, 0);
    };
    image.addEventListener("load", () => {
      redraws.add(draw);
      draw();
    });
    image.src = `data:image/png;base64,${source}`;
  }

  // ------------------------------------------------------------------ events

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const input of inputs) input.addEventListener("input", refresh);
  more.addEventListener("click", append);
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && !more.hidden) append();
  }, { rootMargin: "600px" }).observe(more);
  byId("clear").addEventListener("click", () => {
    pair = null;
    refresh();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const draw of redraws) draw();
  });

  function choose(change) {
    search.value = "";
    operation.value = cause.value = slice.value = "";
    pair = null;
    change();
    refresh();
    byId("utterances").scrollIntoView();
  }
  for (const button of document.querySelectorAll("button.link")) {
    const { cause: why, slice: field, value, pair: op, reference, hypothesis } = button.dataset;
    button.addEventListener("click", () =>
      choose(() => {
        if (why) cause.value = why;
        if (field !== undefined) slice.value = `${data.slices.indexOf(field)}\n${value}`;
        if (op) pair = { op, ref: reference ?? "", hyp: hypothesis ?? "" };
      }),
    );
  }
  refresh();
})();
