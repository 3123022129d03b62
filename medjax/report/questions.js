// The questions of an exam report: search, filters and pages over the data in #question-data. Everything that a model
// or an item wrote becomes text of an element, never markup. The state stands in the address:
// #filter=wrong&q=心電図&evaluation=1&exam=2022&section=A&category=循環器&image=no&page=2
"use strict";
(() => {
  const began = performance.now();
  const PAGE = 50;
  const LETTERS = "abcdefghijklmnopqrstuvwxyz";
  const FIELDS = ["q", "evaluation", "exam", "section", "category", "image"];
  const section = document.getElementById("questions");
  const form = section.querySelector("form");
  const list = document.getElementById("question-list");
  const status = document.getElementById("question-count");
  const pages = document.getElementById("question-pages");
  const data = JSON.parse(document.getElementById("question-data").textContent);
  const { evaluations, questions, answers, outcomes } = data;
  const several = evaluations.length > 1;
  const answersOf = questions.map(() => []);
  for (const answer of answers) answersOf[answer.question].push(answer);
  let state = { filter: "all", page: 1 };
  let found = [];
  let writing = 0;

  // ---- elements

  function element(tag, options, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(options || {})) {
      if (value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== "" && child !== null && child !== undefined));
    return node;
  }

  const tag = (outcome) => element("span", { class: `tag ${outcomes[outcome].tone}` }, outcomes[outcome].label);
  const number = (value) => value.toLocaleString("en");
  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const language = (answer) => evaluations[answer.evaluation].language;

  function read(letters) {
    if (letters === null) return "–";
    return letters.length ? letters.join(", ") : "nothing";
  }

  // ---- what is searched: half-width, lower case, built when it is first needed

  const plain = (text) => text.normalize("NFKC").toLowerCase();
  let haystacks = null;

  function searched() {
    if (!haystacks) {
      const asked = questions.map((question) =>
        plain([question.id, question.category, question.context, question.question, ...question.choices].join("\n")));
      haystacks = answers.map((answer) => {
        const outputs = answer.asks.map((ask) => ask.output || "").join("\n");
        return outputs ? `${asked[answer.question]}\n${plain(outputs)}` : asked[answer.question];
      });
    }
    return haystacks;
  }

  // ---- filters

  function matching() {
    const words = plain(state.q || "").split(/\s+/).filter(Boolean);
    const texts = words.length ? searched() : null;
    const evaluation = state.evaluation ? Number(state.evaluation) - 1 : -1;
    return answers.filter((answer, index) => {
      const question = questions[answer.question];
      return (evaluation < 0 || answer.evaluation === evaluation)
        && ["exam", "section", "category"].every((name) => !state[name] || question[name] === state[name])
        && (!state.image || (state.image === "yes") === Boolean(question.needs_image))
        && words.every((word) => texts[index].includes(word));
    });
  }

  const passes = (answer, filter) =>
    filter === "all" || (filter === "prohibited" ? Boolean(answer.prohibited) : answer.outcome === filter);

  function show() {
    const start = performance.now();
    const rows = matching();
    for (const input of form.elements.filter) {
      const count = rows.reduce((sum, answer) => sum + passes(answer, input.value), 0);
      input.parentElement.querySelector("b").textContent = number(count);
      input.checked = input.value === state.filter;
    }
    found = rows.filter((answer) => passes(answer, state.filter));
    const last = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(Math.max(1, state.page), last);
    const first = (state.page - 1) * PAGE;
    const shown = found.slice(first, first + PAGE);
    list.replaceChildren(...shown.map(row));
    status.textContent = found.length
      ? `${number(first + 1)} to ${number(first + shown.length)} of ${number(found.length)} answers`
      : "No answer matches. Take back a filter, or search for fewer words.";
    document.getElementById("question-head").hidden = !found.length;
    pages.hidden = last === 1;
    pages.querySelector("[name=previous]").disabled = state.page === 1;
    pages.querySelector("[name=next]").disabled = state.page === last;
    pages.querySelector("span").textContent = `page ${number(state.page)} of ${number(last)}`;
    list.getBoundingClientRect(); // the layout that the reader waits for belongs to the time
    section.dataset.filterMs = (performance.now() - start).toFixed(1);
    section.dataset.found = found.length;
  }

  // ---- one answer

  function row(answer) {
    const question = questions[answer.question];
    const place = [question.exam, question.section, question.category].filter(Boolean).join(" · ");
    const node = element("details", { class: "question" }, element("summary", {},
      tag(answer.outcome),
      element("span", { class: "id" }, question.id),
      element("span", { class: "stem", lang: language(answer) }, question.question.slice(0, 160)),
      element("span", { class: "read" }, unseen("read "), read(answer.picked).slice(0, 40), " / ", unseen("right answer "),
        question.answer.join(", ").slice(0, 40)),
      element("span", { class: "place" }, [several ? title(answer) : "", place].filter(Boolean).join(" — "))));
    node.addEventListener("toggle", () => {
      if (node.open && node.childElementCount === 1) node.append(...body(answer));
    });
    return node;
  }

  const unseen = (text) => element("span", { class: "unseen" }, text);
  const title = (answer) => `${evaluations[answer.evaluation].name}, ${evaluations[answer.evaluation].protocol}`;

  function body(answer) {
    const question = questions[answer.question];
    const worth = question.points === undefined ? 0 : question.points;
    const facts = [
      ["Right answer", question.answer.join(", ") || "–"],
      ["Read from the output", answer.picked === null ? "nothing that could be read" : read(answer.picked)],
      ["Points", `${answer.points} of ${worth}${worth ? "" : " (withdrawn)"}`],
      ["Prohibited pick", answer.prohibited ? "yes" : ""],
      ["Examinees who were right", question.human === undefined ? "" : percent(question.human)],
      ["Needs an image", question.needs_image ? "yes; the model saw the text alone" : ""],
      ["Asked", answer.asks.length > 1 ? `${answer.asks.length} times` : ""],
      ["Agreement", answer.agreement === undefined ? "" : percent(answer.agreement)],
      ...Object.entries(answer.metrics || {}).map(([name, value]) => [name, value.toFixed(3)]),
    ];
    const others = answersOf[answer.question].filter((other) => other !== answer);
    const parts = [
      element("div", { class: "asked", lang: language(answer) },
        question.context && element("p", { class: "muted" }, question.context),
        element("p", {}, question.question),
        question.choices.length ? choices(answer, question) : ""),
      element("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
    ];
    if (others.length) {
      parts.push(element("div", { class: "others" }, "The same question elsewhere", element("ul", {}, ...others.map((other) =>
        element("li", {}, `${title(other)}: ${read(other.picked).slice(0, 40)} `, tag(other.outcome))))));
    }
    answer.asks.forEach((ask, index) => parts.push(...asked(answer, ask, index)));
    return parts;
  }

  function choices(answer, question) {
    const scores = answer.asks.length === 1 ? answer.asks[0].scores || [] : [];
    return element("ol", { class: "choices" }, ...question.choices.map((text, index) => {
      const letter = LETTERS[index];
      const gold = question.answer.includes(letter);
      const picked = (answer.picked || []).includes(letter);
      const marks = [gold && "✓ correct", (question.prohibited || []).includes(letter) && "prohibited", picked && "picked"];
      return element("li", { class: `${gold ? "gold" : ""} ${picked ? "picked" : ""}`.trim() },
        element("span", { class: "letter" }, letter),
        element("span", {}, text || "(blank)"),
        element("span", { class: "marks", lang: "en" }, marks.filter(Boolean).join(" · ")),
        scores.length ? bar(scores, index) : "");
    }));
  }

  // The bar is the probability among the choices: of log-probabilities a difference means something, not a length.
  function bar(scores, index) {
    const best = Math.max(...scores);
    const whole = scores.reduce((sum, score) => sum + Math.exp(score - best), 0);
    const share = Math.exp(scores[index] - best) / whole;
    const meter = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
    meter.firstChild.style.width = `${(100 * share).toFixed(2)}%`;
    const shown = `${scores[index].toFixed(2).replace("-", "−")} · ${percent(share)}`;
    return element("span", { class: "score", lang: "en", title: "log-probability · share among the choices" }, meter, shown);
  }

  function asked(answer, ask, index) {
    const { begin, end } = evaluations[answer.evaluation];
    const heading = [];
    if (answer.asks.length > 1) heading.push(`Ask ${index + 1}: read ${read(ask.parsed)}, ${ask.correct ? "right" : "not right"}`);
    if (ask.order) heading.push(`choices shown in the order ${ask.order.map((place) => LETTERS[place]).join(" ")}`);
    if (ask.template) heading.push(`template ${ask.template}`);
    if (ask.sample) heading.push(`draw ${ask.sample + 1}`);
    if (ask.truncated) heading.push("truncated at the limit of new tokens");
    if (ask.forced) heading.push("answer forced after reasoning");
    if (ask.probability) heading.push(`probability of the pick ${percent(ask.probability)}`);
    const parts = heading.length ? [element("p", { class: "ask" }, heading.join("; "))] : [];
    if (ask.scores && answer.asks.length > 1) {
      parts.push(element("p", { class: "ask" }, `log-probabilities as shown: ${ask.scores.map((s) => s.toFixed(2)).join(", ")}`));
    }
    if (ask.output !== undefined && answer.outcome !== "too_long") {
      parts.push(element("h4", {}, "Output"),
        element("pre", { class: "answer output", lang: language(answer), tabindex: "0" }, ask.output || "(empty)"));
    }
    if (ask.prompt !== undefined) {
      parts.push(element("details", { class: "prompt" }, element("summary", {}, "Prompt"),
        element("pre", { class: "answer", lang: language(answer), tabindex: "0" },
          element("span", { class: "muted" }, begin), ask.prompt, element("span", { class: "muted" }, end))));
    }
    return parts;
  }

  // ---- state, address and controls

  function fill() {
    const values = (name) => [...new Set(questions.map((question) => question[name] || ""))].filter(Boolean).sort();
    const options = {
      evaluation: evaluations.map((entry, index) => [String(index + 1), `${entry.name}, ${entry.protocol}`]),
      ...Object.fromEntries(["exam", "section", "category"].map((name) => [name, values(name).map((v) => [v, v])])),
      image: questions.some((question) => question.needs_image) ? [["no", "text only"], ["yes", "with an image"]] : [],
    };
    for (const [name, pairs] of Object.entries(options)) {
      const select = form.elements[name];
      select.append(...pairs.map(([value, label]) => element("option", { value }, label)));
      select.closest("label").hidden = pairs.length < 2;
    }
    const met = new Set(answers.map((answer) => answer.outcome));
    if (answers.some((answer) => answer.prohibited)) met.add("prohibited");
    for (const input of form.elements.filter) {
      input.closest("label").hidden = input.value !== "all" && !met.has(input.value);
    }
  }

  function readAddress() {
    const text = location.hash.slice(1);
    if (!text.includes("=")) return false; // an anchor of the page
    const given = new URLSearchParams(text);
    const allowed = [...form.elements.filter].map((input) => input.value);
    state = { filter: allowed.includes(given.get("filter")) ? given.get("filter") : "all", page: Number.parseInt(given.get("page"), 10) || 1 };
    for (const name of FIELDS) {
      form.elements[name].value = given.get(name) || "";
      state[name] = form.elements[name].value; // a select takes only what it offers
    }
    return true;
  }

  function writeAddress() {
    const pairs = ["filter", ...FIELDS, "page"].filter((name) => state[name] && state[name] !== "all" && state[name] !== 1);
    const text = new URLSearchParams(pairs.map((name) => [name, String(state[name])])).toString();
    history.replaceState(null, "", text ? `#${text}` : "#questions");
  }

  function change(next) {
    Object.assign(state, next);
    show();
    clearTimeout(writing);
    writing = setTimeout(writeAddress, 300); // browsers refuse many changes of the address within seconds
  }

  function turn(step) {
    change({ page: state.page + step });
    status.scrollIntoView({ block: "start" });
    list.querySelector("summary")?.focus({ preventScroll: true });
  }

  form.addEventListener("input", () => {
    const values = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
    change({ ...values, filter: form.elements.filter.value || "all", page: 1 });
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => form.dispatchEvent(new Event("input")), 0));
  pages.querySelector("[name=previous]").addEventListener("click", () => turn(-1));
  pages.querySelector("[name=next]").addEventListener("click", () => turn(1));
  window.addEventListener("hashchange", () => { if (readAddress()) show(); });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      form.elements.q.focus();
    }
  });

  fill();
  const linked = readAddress();
  form.hidden = false;
  show();
  section.dataset.openMs = (performance.now() - began).toFixed(1);
  if (linked) section.scrollIntoView();
})();
