// The report's page: figures drawn when they come into view, a cell's examples, tables that sort and filter, light, dark, print.
"use strict";

(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data");
  const template = read("template");
  const night = matchMedia("(prefers-color-scheme: dark)");
  const FIRST = 6; // examples of a list that are shown before one asks for more
  const PRINTED = { width: 680, height: 840 }; // pixels that a figure has on paper; a higher one is made smaller
  let printing = false;

  /** An element with attributes and children; texts go in as text, never as markup. */
  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // ---- figures ----

  // What figures are drawn with on white, and what stands for it on black. Colours that mean something stay what they are.
  const AT_NIGHT = {
    "#000000": "#f2f0ec",
    "#444444": "#a3a8af",
    "#7f7f7f": "#9a9a9a",
    "#d9d9d9": "#565b63",
    "#882255": "#cc6699",
    "rgb(36,36,36)": "#d4d2ce",
    "rgb(232,232,232)": "#343940",
    black: "#f2f0ec",
    white: "#17191c",
  };

  function atNight(value) {
    if (typeof value === "string") return Object.hasOwn(AT_NIGHT, value) ? AT_NIGHT[value] : value;
    if (Array.isArray(value)) return value.map(atNight);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, part]) => [name, name === "meta" ? part : atNight(part)]));
  }

  /** plotly.js, run when it is first asked for: that takes longer than all else, and the page is there before. */
  function plotly() {
    if (!window.Plotly) document.head.append(el("script", {}, document.getElementById("plotly").textContent));
    return window.Plotly;
  }

  function draw(place) {
    const figure = read(`figure-${place.dataset.figure}`);
    const own = night.matches && !printing ? atNight : (value) => value;
    const layout = { ...own(figure.layout), template: own(template), autosize: true };
    layout.font = { ...layout.font, family: getComputedStyle(document.body).fontFamily };
    if (printing) layout.width = PRINTED.width;
    place.style.zoom = printing ? Math.min(1, PRINTED.height / layout.height) : "";
    const first = !place.classList.contains("drawn");
    place.classList.add("drawn");
    plotly().react(place, own(figure.data), layout, { responsive: true, displaylogo: false });
    if (!first) return;
    const panel = panels[place.dataset.run];
    if (!panel || !figure.data.some((trace) => panel.find(cellAt(trace.meta, 0, 0)))) return;
    place.classList.add("pickable");
    place.on("plotly_click", (event) => {
      const point = event.points[0];
      const [row, column] = [].concat(point.pointNumber);
      const found = panel.find(cellAt(point.data.meta, row, column));
      if (found) panel.show(found.board, found.picks, true);
    });
  }

  /** The cell that a point of a figure is: the trace's own `at`, and what its row and column, or its place in a line, select. */
  function cellAt(meta, row, column) {
    if (!meta || !meta.at) return null;
    if (meta.rows) return { ...meta.at, ...meta.rows[row], ...meta.columns[column] };
    return meta.points && meta.points[row] ? { ...meta.at, ...meta.points[row] } : null;
  }

  function drawInView() {
    const places = [...document.querySelectorAll(".plot")];
    const watch = new IntersectionObserver(
      (seen) => {
        for (const entry of seen.filter((one) => one.isIntersecting)) {
          watch.unobserve(entry.target);
          if (!entry.target.classList.contains("drawn")) draw(entry.target);
        }
      },
      { rootMargin: "400px" },
    );
    const begin = () => {
      if (places.length) plotly();
      places.forEach((place) => watch.observe(place));
    };
    requestAnimationFrame(() => setTimeout(begin)); // once the page is painted
    night.addEventListener("change", () => places.filter((place) => place.classList.contains("drawn")).forEach(draw));
    printAll(places);
  }

  /** On paper: every figure, in the colours for white and as wide as a page, and all that is folded away open. */
  function printAll(places) {
    let folded = [];
    addEventListener("beforeprint", () => {
      printing = true;
      folded = [...document.querySelectorAll("details:not([open])")];
      folded.forEach((part) => (part.open = true));
      places.forEach(draw);
    });
    addEventListener("afterprint", () => {
      printing = false;
      folded.forEach((part) => (part.open = false));
      places.forEach(draw);
    });
  }

  // ---- the examples that a cell fixed and broke ----

  const DOMAINS = { id: "in distribution", ood: "out of distribution" };
  const LABELS = { pos: "position", line: "heads", row: "heads selected on", reference: "held against", check: "patched site" };

  /** What a place along a dim is called. */
  function named(dim, place) {
    if (dim.name !== "examples") return String(place[dim.name]);
    return [place.suite, DOMAINS[place.domain]].filter(Boolean).join(", ");
  }

  /** A number as one reads it: four digits. */
  const short = (value) => (value === null ? "none" : String(Number(value.toPrecision(4))));

  function makePanel(section, boards) {
    const form = el("form", { "aria-label": "Which cell" });
    const counts = el("p", { class: "counts" });
    const words = el("p", { class: "note" });
    const sides = el("div", { class: "sides" });
    section.append(form, el("div", { role: "status" }, counts, words), sides);
    form.addEventListener("submit", (event) => event.preventDefault());

    function chooser(label, names, chosen, onchange) {
      const select = el("select", {}, ...names.map((name, i) => el("option", { value: i }, name)));
      select.selectedIndex = chosen;
      select.addEventListener("change", () => onchange(select.selectedIndex));
      form.append(el("label", {}, label, select));
      return select;
    }

    /** The selects of a board; a change of one shows its cell. */
    function build(board, picks) {
      form.replaceChildren();
      if (boards.length > 1) {
        chooser("kind of cell", boards.map((one) => one.name), boards.indexOf(board), (i) => {
          show(boards[i], unflat(boards[i], boards[i].start));
          form.querySelector("select").focus();
        });
      }
      board.dims.forEach((dim, d) => {
        if (dim.places.length < 2) return;
        const names = dim.places.map((place) => named(dim, place));
        chooser(LABELS[dim.name] || dim.name, names, picks[d], (i) => {
          picks = picks.with(d, i);
          fill(board, picks);
        });
      });
    }

    function show(board, picks, scroll = false) {
      build(board, picks);
      fill(board, picks);
      if (scroll) section.scrollIntoView({ block: "nearest" });
    }

    function fill(board, picks) {
      const [n, rate, low, high, better, worse] = board.cells[flat(board, picks)];
      const [up, down] = rate ? ["fixed", "broke"] : ["better", "worse"];
      const same = n - better[0] - worse[0];
      const places = board.dims.map((dim, d) => dim.places[picks[d]]);
      const [before, after] = board.words.map((words) => words.replace(/\{(\w+)\}/g, (_, name) => Object.assign({}, ...places)[name]));
      const said = `${up} ${better[0]}, ${down} ${worse[0]}, same ${same} of ${n} examples; mean ${places[1].metric} ${short(low)} → ${short(high)}`;
      counts.textContent = n ? said : "No example has this cell.";
      words.textContent = `${named(board.dims[0], places[0])}; before: ${before}; after: ${after}`;
      sides.replaceChildren(side(up, "better", better, rate), side(down, "worse", worse, rate));
    }

    /** The cell of a figure's point: its board and its place along each dim; null where no cell is called so. */
    function find(cell) {
      if (!cell) return null;
      for (const board of boards) {
        const known = new Set([...Object.keys(board.at), ...board.dims.flatMap((dim) => Object.keys(dim.places[0]))]);
        const fits = Object.entries(cell).every(([name, value]) => (name in board.at ? board.at[name] === value : known.has(name)));
        const agrees = (place) => Object.entries(place).every(([name, value]) => !(name in cell) || cell[name] === value);
        const picks = fits ? board.dims.map((dim) => dim.places.findIndex(agrees)) : [-1];
        if (!picks.includes(-1)) return { board, picks };
      }
      return null;
    }

    show(boards[0], unflat(boards[0], boards[0].start));
    return { find, show };
  }

  /** The number of a cell among its board's, the last dim running fastest; and back. */
  const flat = (board, picks) => board.dims.reduce((index, dim, d) => index * dim.places.length + picks[d], 0);
  const unflat = (board, index) =>
    board.dims.reduceRight(([picks, rest], { places }) => [[rest % places.length, ...picks], Math.floor(rest / places.length)], [[], index])[0];

  /** One list: the first few, and a button for the rest. */
  function side(word, kind, [count, examples, values = [], texts = []], rate) {
    const title = word[0].toUpperCase() + word.slice(1);
    const some = examples.length < count ? `, ${rate ? "the first" : "the largest"} ${examples.length} listed` : "";
    const items = examples.map((example, i) => item(data.examples[example], values.slice(2 * i, 2 * i + 2), texts.slice(2 * i, 2 * i + 2)));
    const list = el("ol", { class: "examples" }, ...items.slice(0, FIRST));
    const made = el("div", { class: kind }, el("h4", {}, `${title}: ${count}${some}`), list);
    if (items.length > FIRST) {
      const more = el("button", { type: "button", class: "more" }, `Show ${items.length - FIRST} more`);
      more.addEventListener("click", () => {
        list.append(...items.slice(FIRST));
        items[FIRST].tabIndex = -1;
        items[FIRST].focus();
        more.remove();
      });
      made.append(more);
    }
    return made;
  }

  function item([id, prompt, answer], ends, texts) {
    const about = el("p", { class: "about" });
    if (answer) about.append("answer ", el("code", { dir: "auto" }, answer), " · ");
    if (ends.length) about.append(`${short(ends[0])} → ${short(ends[1])} · `);
    about.append(id);
    const wrote = texts.map((text, i) => el("p", { class: "about" }, i ? "after: " : "before: ", el("code", { dir: "auto" }, data.texts[text])));
    return el("li", {}, el("p", { class: "prompt", dir: "auto" }, prompt), about, ...wrote);
  }

  // ---- tables ----

  /** The first number of a cell, `-.113 [...]` as -0.113; NaN where it has none. */
  function number(text) {
    const found = text.replace(/(\d),(?=\d{3})/g, "$1").match(/[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  }

  function compare(a, b, numeric) {
    if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return x - y;
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const bodies = [...table.tBodies].map((body) => [body, [...body.rows]]);
    heads.forEach((head, column) => {
      const numeric = head.classList.contains("num");
      const button = el("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        const text = (row) => row.cells[column].textContent.trim();
        const known = (row) => !numeric || !Number.isNaN(number(text(row)));
        for (const [body, rows] of bodies) {
          const sorted = next === "none" ? rows : [...rows].sort((a, b) => compare(text(a), text(b), numeric));
          // Backwards, but for rows without a number: those stay at the end.
          const order = next === "descending" ? [...sorted.filter(known).reverse(), ...sorted.filter((row) => !known(row))] : sorted;
          body.append(...order);
        }
      });
    });
  }

  function filterable(table) {
    const rows = [...table.tBodies].flatMap((body) => [...body.rows]);
    if (rows.length < 8) return;
    const field = el("input", { type: "search", autocomplete: "off" });
    const said = el("span", { class: "note", role: "status" });
    field.addEventListener("input", () => {
      const asked = field.value.trim().toLowerCase();
      rows.forEach((row) => (row.hidden = !row.textContent.toLowerCase().includes(asked)));
      said.textContent = asked ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    });
    const label = el("label", {}, `Filter ${rows.length} rows `, field);
    table.closest(".tabled").prepend(el("div", { class: "filter" }, label, said));
  }

  // A table that is wider than its place can be scrolled by keyboard; one that is not is no stop on the way.
  const wide = new ResizeObserver((seen) => seen.forEach(({ target }) => (target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1)));
  document.querySelectorAll(".scroll").forEach((place) => wide.observe(place));

  const panels = {};
  for (const section of document.querySelectorAll(".cells")) {
    panels[section.dataset.run] = makePanel(section, data.runs[section.dataset.run]);
  }
  for (const table of document.querySelectorAll("table")) {
    sortable(table);
    filterable(table);
  }
  drawInView();
})();
