// Behaviour of the report: theme, legends that hide lines, values under the pointer, tables that sort, the query browser,
// and the renewal of the page while rankpo serve watches runs. Every text goes into the page as a text node.
(() => {
  "use strict";

  const state = { off: new Set(), sorted: new Map(), browse: {} };

  /** An element with properties, attributes (data-, aria-, class, style) and children; null children are left out. */
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick" || name === "oninput" || name === "onchange") element[name] = value;
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };

  // --- theme -------------------------------------------------------------------------------------------------------
  const THEMES = ["system", "light", "dark"];

  const remembered = () => {
    try { return localStorage.getItem("rankpo-theme"); } catch { return null; }
  };

  const setTheme = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    document.getElementById("theme").textContent = `Theme: ${theme}`;
    try { localStorage.setItem("rankpo-theme", theme); } catch { /* a file opened without storage forgets its theme */ }
  };

  const startTheme = () => {
    let theme = THEMES.includes(remembered()) ? remembered() : "system";
    setTheme(theme);
    document.getElementById("theme").onclick = () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      setTheme(theme);
    };
  };

  // --- legends -----------------------------------------------------------------------------------------------------
  const showSeries = (root) => {
    for (const series of root.querySelectorAll(".series")) series.classList.toggle("off", state.off.has(series.dataset.key));
    for (const button of root.querySelectorAll(".legend button"))
      button.setAttribute("aria-pressed", String(!state.off.has(button.dataset.key)));
  };

  const startLegends = (root) => {
    for (const button of root.querySelectorAll(".legend button"))
      button.onclick = () => {
        const key = button.dataset.key;
        if (!state.off.delete(key)) state.off.add(key);
        showSeries(document);
      };
    showSeries(root);
  };

  // --- values under the pointer ------------------------------------------------------------------------------------
  const readable = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  };

  const valueAt = (scale, pixel) => {
    const [low, high, start, end] = scale.split(" ").map(Number);
    return low + ((pixel - start) / (end - start)) * (high - low);
  };

  /** The point of each visible line that is nearest to the pointer's x: [name, colour, x and y in pixels]. */
  const nearest = (chart, pixel) => {
    const found = [];
    for (const series of chart.querySelectorAll(".series:not(.off)")) {
      const line = series.querySelector("polyline");
      if (!line) continue;
      const points = line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number));
      const best = points.reduce((a, b) => (Math.abs(b[0] - pixel) < Math.abs(a[0] - pixel) ? b : a));
      found.push({ name: series.dataset.name, colour: series.style.getPropertyValue("--c"), x: best[0], y: best[1] });
    }
    return found;
  };

  const startTips = (root) => {
    const tip = document.getElementById("tip");
    for (const chart of root.querySelectorAll(".charts svg.chart")) {
      const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
      cursor.setAttribute("class", "cursor");
      const leave = () => { tip.hidden = true; cursor.remove(); };
      chart.onpointerleave = leave;
      chart.onpointermove = (event) => {
        const box = chart.getBoundingClientRect();
        const width = chart.viewBox.baseVal.width;
        const points = nearest(chart, ((event.clientX - box.left) / box.width) * width);
        if (!points.length) return leave();
        const x = points[0].x;
        for (const [name, value] of [["x1", x], ["x2", x], ["y1", 14], ["y2", chart.viewBox.baseVal.height - 44]])
          cursor.setAttribute(name, value);
        chart.append(cursor);
        tip.replaceChildren(
          make("div", { class: "faint" }, `update ${readable(Math.round(valueAt(chart.dataset.x, x)))}`),
          ...points.map((point) => make("div", {},
            make("i", { class: "dot", style: `--c:${point.colour}` }), `${point.name} `,
            make("b", {}, readable(valueAt(chart.dataset.y, point.y))))));
        tip.hidden = false;
        tip.style.left = `${Math.min(event.clientX + 16, innerWidth - tip.offsetWidth - 8)}px`;
        tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
      };
    }
  };

  // --- tables ------------------------------------------------------------------------------------------------------
  const cellValue = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };

  /** Numbers by size, texts by letters, empty cells always last. */
  const compareCells = (one, other, direction) => {
    if (one === "" || other === "") return (one === "") - (other === "");
    const numbers = [Number(one), Number(other)];
    if (numbers.every((value) => !Number.isNaN(value))) return direction * (numbers[0] - numbers[1]);
    return direction * one.localeCompare(other, undefined, { numeric: true });
  };

  const sortTable = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((a, b) => compareCells(cellValue(a, column), cellValue(b, column), direction));
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };

  const startSorting = (root) => {
    [...root.querySelectorAll("table.sortable")].forEach((table, number) => {
      [...table.tHead.rows[0].cells].forEach((head, column) => {
        const button = make("button", { type: "button" }, ...head.childNodes);
        button.onclick = () => {
          const last = state.sorted.get(number);
          const first = column === 0 ? 1 : -1; // names from A, numbers from the largest
          const direction = last && last.column === column ? -last.direction : first;
          state.sorted.set(number, { column, direction });
          sortTable(table, column, direction);
        };
        head.append(button);
      });
      const chosen = state.sorted.get(number);
      if (chosen) sortTable(table, chosen.column, chosen.direction);
    });
  };

  // --- terms -------------------------------------------------------------------------------------------------------
  const WORD = /[\p{L}\p{N}]+/gu;
  const UNSPACED = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]/u;

  /** The words of a text, and the pairs of letters of a script that writes no spaces. */
  const terms = (text) => {
    const found = new Set();
    for (const word of text.toLowerCase().match(WORD) ?? []) {
      if (!UNSPACED.test(word)) { if (word.length > 2) found.add(word); continue; }
      const letters = [...word];
      if (letters.length === 1) found.add(word);
      for (let i = 0; i + 1 < letters.length; i++) found.add(letters[i] + letters[i + 1]);
    }
    return found;
  };

  /** Words in more than 40 % of at least ten documents say nothing about a match. */
  const commonTerms = (documents) => {
    const counts = new Map();
    for (const text of documents) for (const term of terms(text)) counts.set(term, (counts.get(term) ?? 0) + 1);
    const limit = documents.length < 10 ? Infinity : 0.4 * documents.length;
    return new Set([...counts].filter(([, count]) => count > limit).map(([term]) => term));
  };

  const marked = (text, query, common) => {
    const wanted = [...terms(query)].filter((term) => !common.has(term)).sort((a, b) => b.length - a.length);
    if (!wanted.length) return [text];
    const escaped = wanted.map((term) => UNSPACED.test(term) ? term : `(?<![\\p{L}\\p{N}])${term}(?![\\p{L}\\p{N}])`);
    const pieces = text.split(new RegExp(`(${escaped.join("|")})`, "giu"));
    return pieces.map((piece, index) => (index % 2 ? make("mark", {}, piece) : piece));
  };

  // --- query browser -----------------------------------------------------------------------------------------------
  const HITS = 10;
  const ORDERS = {
    change: "largest change first",
    gain: "largest gain first",
    loss: "largest loss first",
    worst: "worst result after first",
  };

  const options = (names, chosen) => names.map(([value, text]) => {
    const option = make("option", { value }, text);
    option.selected = String(value) === String(chosen);
    return option;
  });

  const select = (label, names, chosen, onchange) =>
    make("label", {}, label, make("select", { onchange: (event) => onchange(event.target.value) }, ...options(names, chosen)));

  class Browser {
    constructor(root, sets, chosen) {
      Object.assign(this, { root, sets, chosen });
      chosen.set = Math.min(chosen.set ?? 0, sets.length - 1);
      this.open();
    }

    get data() { return this.sets[this.chosen.set]; }

    /** Draws the controls of a data set; models and metric are kept where the set has them too. */
    open() {
      const { data, chosen } = this;
      const models = data.models.map((model, index) => [index, model.name]);
      const fits = (index) => Number.isInteger(index) && index >= 0 && index < models.length;
      if (!fits(chosen.before)) chosen.before = data.base;
      if (!fits(chosen.after)) chosen.after = this.mostChanged();
      chosen.metric = Math.min(chosen.metric ?? 0, data.metrics.length - 1);
      chosen.order ??= "change";
      chosen.text ??= "";
      this.common = commonTerms(data.documents.map(([, text]) => text));
      const set = (name, number = true) => (value) => { chosen[name] = number ? Number(value) : value; this.list(); };
      const search = make("input", { type: "search", id: "query-search", placeholder: "words of a query", oninput: () => { chosen.text = search.value; this.list(); } });
      search.value = chosen.text;
      const sets = this.sets.map((item, index) => [index, item.name]);
      const changeSet = (value) => { chosen.set = Number(value); chosen.before = chosen.after = chosen.query = undefined; this.open(); };
      this.count = make("p", { class: "faint", role: "status", id: "query-count" });
      this.names = make("div", { class: "list", id: "query-list" });
      this.detail = make("div", { id: "query-detail" });
      this.root.replaceChildren(
        make("div", { class: "controls" },
          make("label", {}, "Search queries", search),
          sets.length > 1 ? select("Data set", sets, chosen.set, changeSet) : null,
          select("Before", models, chosen.before, set("before")),
          select("After", models, chosen.after, set("after")),
          select("Metric", data.metrics.map((name, index) => [index, name]), chosen.metric, set("metric")),
          select("Order", Object.entries(ORDERS), chosen.order, set("order", false))),
        this.count, make("div", { class: "browse" }, this.names, this.detail));
      this.list();
    }

    /** The model whose first metric differs most from the baseline's over all queries. */
    mostChanged() {
      const { data } = this;
      const change = data.models.map((_, index) =>
        data.queries.reduce((sum, query) => sum + Math.abs(query.values[index][0] - query.values[data.base][0]), 0));
      change[data.base] = -1;
      return change.indexOf(Math.max(...change));
    }

    value(query, model) { return query.values[model][this.chosen.metric]; }

    gain(query) { return this.value(query, this.chosen.after) - this.value(query, this.chosen.before); }

    found() {
      const words = this.chosen.text.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (query) => words.every((word) => `${query.id} ${query.text}`.toLowerCase().includes(word));
      const key = {
        change: (query) => -Math.abs(this.gain(query)), gain: (query) => -this.gain(query),
        loss: (query) => this.gain(query), worst: (query) => this.value(query, this.chosen.after),
      }[this.chosen.order];
      return this.data.queries.filter(fits).sort((a, b) => key(a) - key(b));
    }

    list() {
      const found = this.found();
      const { data, chosen } = this;
      const all = data.queries.length < data.total ? `${data.queries.length} that changed most, of ${data.total}` : `${data.total}`;
      this.count.textContent = chosen.text ? `${found.length} of ${all} queries` : `${all} queries`;
      this.names.replaceChildren(...found.map((query) => this.entry(query)));
      const current = found.find((query) => query.id === chosen.query) ?? found[0];
      if (current) this.show(current);
      else this.detail.replaceChildren(make("p", {}, "No query matches."));
    }

    entry(query) {
      const gain = this.gain(query);
      const sign = gain > 0 ? "good" : gain < 0 ? "bad" : "";
      return make("button", { type: "button", "data-query": query.id, onclick: () => this.show(query) },
        make("div", { class: "text" }, query.text || query.id),
        make("small", {}, `${readable(this.value(query, this.chosen.before))} → ${readable(this.value(query, this.chosen.after))} `,
          make("b", { class: sign }, `${gain > 0 ? "+" : ""}${readable(gain)}`)));
    }

    show(query) {
      this.chosen.query = query.id;
      for (const button of this.names.children)
        if (button.dataset.query === query.id) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      const { before, after } = this.chosen;
      const sides = query.hits.length
        ? make("div", { class: "sides" }, this.side(query, "before", before, after), this.side(query, "after", after, before))
        : make("p", { class: "faint" }, "This evaluation kept no ranking of documents.");
      this.detail.replaceChildren(
        make("p", { class: "query" }, query.text || query.id, " ", make("small", {}, query.text ? query.id : "")),
        ...(query.judge.length ? [make("p", { class: "faint" }, this.judged(query))] : []), sides);
    }

    judged(query) {
      const { before, after } = this.chosen;
      const agreement = (model) => `${query.agrees[model][0]} of ${query.agrees[model][1]}`;
      const pairs = query.judge.length === 1 ? "1 pair" : `${query.judge.length} pairs`;
      return `The judge compared ${pairs} of the passages shown here. Ordered as the judge prefers: before ${agreement(before)}, after ${agreement(after)}.`;
    }

    side(query, when, model, other) {
      const ranked = query.hits.filter((hit) => hit[2 + model] && hit[2 + model] <= HITS).sort((a, b) => a[2 + model] - b[2 + model]);
      const { name, note, colour } = this.data.models[model];
      return make("div", { "data-side": when },
        make("div", {}, make("i", { class: "dot", style: `--c:${colour}` }), make("b", {}, name), ` ${when} `, make("small", {}, note)),
        make("ol", {}, ...ranked.map((hit) => this.hit(query, hit, when, hit[2 + model], hit[2 + other]))));
    }

    hit(query, hit, when, rank, elsewhere) {
      const [identity, text] = this.data.documents[hit[0]];
      const grade = hit[1];
      return make("li", { "data-document": identity },
        make("div", { class: "head" },
          make("span", { class: "rank" }, String(rank)), moved(when, rank, elsewhere),
          grade === null ? null : make("span", { class: `badge ${grade > 0 ? "good" : ""}` }, grade > 0 ? `grade ${grade}` : "not relevant"),
          ...choices(query.judge, hit[0]), make("small", {}, identity)),
        make("div", {}, ...(text ? marked(text, query.text, this.common) : ["(its text is not known to this report)"])));
    }
  }

  /** Where a hit stands in the other list: "was 7 ▲4" in the later list, "now 9 ▼6" in the earlier. */
  const moved = (when, rank, elsewhere) => {
    const word = when === "after" ? "was" : "now";
    if (!elsewhere) return make("span", { class: `moved ${when === "after" ? "good" : "bad"}` }, when === "after" ? "new in the list" : "no longer in the list");
    const change = when === "after" ? elsewhere - rank : rank - elsewhere;
    if (!change) return make("span", { class: "moved faint" }, "same rank");
    return make("span", { class: `moved ${change > 0 ? "good" : "bad"}` }, `${word} ${elsewhere} ${change > 0 ? "▲" : "▼"}${Math.abs(change)}`);
  };

  const choices = (pairs, number) => {
    const won = pairs.filter(([preferred]) => preferred === number).length;
    const lost = pairs.filter(([, other]) => other === number).length;
    return [
      won ? make("span", { class: "badge good" }, `judge: preferred ${won} ×`) : null,
      lost ? make("span", { class: "badge bad" }, `judge: not preferred ${lost} ×`) : null,
    ];
  };

  const startBrowser = (root) => {
    const data = root.querySelector("#query-data");
    if (data) new Browser(root.querySelector("#browser"), JSON.parse(data.textContent), state.browse);
  };

  // --- renewal -----------------------------------------------------------------------------------------------------
  const start = (root) => { startLegends(root); startTips(root); startSorting(root); startBrowser(root); };

  /** Puts a new version of the content in place; what the reader chose, opened and typed stays. */
  const renew = (html) => {
    const main = document.getElementById("content");
    const parsed = new DOMParser().parseFromString(html, "text/html");
    const opened = [...main.querySelectorAll("details")].map((item) => item.open);
    const active = document.activeElement?.id;
    const scroll = main.querySelector("#query-list")?.scrollTop;
    main.replaceChildren(...parsed.body.childNodes);
    [...main.querySelectorAll("details")].forEach((item, index) => { item.open = opened[index] ?? false; });
    start(main);
    if (active && main.querySelector(`#${CSS.escape(active)}`)) document.getElementById(active).focus();
    if (scroll) main.querySelector("#query-list").scrollTop = scroll;
  };

  const watch = (seconds) => {
    const says = document.getElementById("live");
    let version = "";
    const ask = async () => {
      try {
        const answer = await fetch(`/main?version=${encodeURIComponent(version)}`);
        if (answer.status === 200) { version = answer.headers.get("X-Version") ?? ""; renew(await answer.text()); }
        says.textContent = answer.ok ? `live, checked at ${new Date().toLocaleTimeString()}` : `the server answers ${answer.status}`;
      } catch {
        says.textContent = "the server does not answer; this is its last state";
      }
      setTimeout(ask, 1000 * seconds);
    };
    ask();
  };

  // --- search box --------------------------------------------------------------------------------------------------
  const startSearch = () => {
    const form = document.querySelector("#search form");
    if (!form) return;
    form.onsubmit = async (event) => {
      event.preventDefault();
      const query = document.getElementById("search-query").value;
      const result = document.getElementById("search-result");
      try {
        const answer = await fetch(`/search?q=${encodeURIComponent(query)}`);
        const found = await answer.json();
        result.replaceChildren(answer.ok ? compared(query, found.models) : make("p", { class: "bad" }, found.error));
      } catch {
        result.replaceChildren(make("p", { class: "bad" }, "The server does not answer."));
      }
    };
  };

  /** The hits of every model side by side; a hit that another model has too says at which rank. */
  const compared = (query, models) => {
    const texts = new Map(models.flatMap((model) => model.hits.map((hit) => [hit.id, hit.text])));
    const common = commonTerms([...texts.values()]);
    return make("div", { class: "sides" }, ...models.map((model, number) => make("div", {},
      make("div", {}, make("i", { class: "dot", style: `--c:${model.colour}` }), make("b", {}, model.name)),
      make("ol", {}, ...model.hits.map((hit) => {
        const others = models.filter((_, index) => index !== number).map((other) => {
          const same = other.hits.find((item) => item.id === hit.id);
          return make("span", { class: "faint" }, same ? `${other.name}: rank ${same.rank}` : `${other.name}: not among its ${other.hits.length}`);
        });
        return make("li", { "data-document": hit.id },
          make("div", { class: "head" }, make("span", { class: "rank" }, String(hit.rank)), make("span", {}, readable(hit.score)), ...others, make("small", {}, hit.id)),
          make("div", {}, ...(hit.text ? marked(hit.text, query, common) : ["(its text is not known)"])));
      })))));
  };

  startTheme();
  startSearch();
  start(document);
  if (document.body.dataset.live) watch(Number(document.body.dataset.live));
})();
