"use strict";

const statuses = { pending: "Waiting", running: "Running", succeeded: "Done", failed: "Failed", cancelled: "Cancelled" };
const unreachable = "The service could not be reached. Please try again in a moment.";

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", event => {
    event.preventDefault();
    const request = { title: form.dataset.title, path: form.dataset.path, texts: Object.fromEntries(new FormData(form)) };
    const message = form.querySelector(".message");
    message.textContent = "";
    start(request, message);
  });
}

// start asks the service for an operation and shows it, or says in message why there is none.
async function start(request, message) {
  const fault = document.getElementById("fault")?.value;
  try {
    const response = await fetch(request.path + (fault ? "?fault=" + encodeURIComponent(fault) : ""), {
      method: "POST",
      headers: { "Content-Type": "application/json", "Accept": "application/json" },
      body: JSON.stringify(request.texts),
    });
    const answer = await response.json();
    if (response.ok) {
      show(request, response.headers.get("Location"), answer);
      return;
    }
    message.textContent = answer.detail;
  } catch {
    message.textContent = unreachable;
  }
  message.scrollIntoView({ block: "nearest" });
}

let shown = 0;

// show adds an operation to the list and follows it to its end. A card has a number, for two may have the same text.
function show(request, path, operation) {
  const card = document.getElementById("operation").content.firstElementChild.cloneNode(true);
  const part = name => card.querySelector(name);
  const title = ++shown + ". " + request.title + ": " + Object.values(request.texts)[0];
  part("h3").textContent = title;
  part("progress").setAttribute("aria-label", "Progress of " + title);
  part(".cancel").setAttribute("aria-label", "Cancel " + title);
  part(".retry").setAttribute("aria-label", "Try again: " + title);
  const asked = Date.now();
  part(".asked").dateTime = operation.created_at;
  part(".asked").textContent = new Date(operation.created_at).toLocaleTimeString();

  let current = { revision: 0 };
  const update = op => {
    if (op.revision < current.revision) return; // an answer that a later one has overtaken
    const changed = op.revision > current.revision;
    current = op;
    part(".took").textContent = op.finished_at === null ? ", for " + seconds(Date.now() - asked)
      : ", took " + seconds(new Date(op.finished_at) - new Date(op.created_at));
    if (!changed) return;
    const final = op.finished_at !== null, hadFocus = part(".working").contains(document.activeElement);
    card.className = "card operation " + op.status + (final ? " final" : "");
    if (part(".status").textContent !== statuses[op.status]) part(".status").textContent = statuses[op.status];
    part("progress").value = op.progress;
    part(".note").textContent = op.cancel_requested ? "Cancelling" : op.progress_note ?? "";
    part(".message").textContent = op.error_message ?? "";
    part(".retry").hidden = op.status !== "failed" && op.status !== "cancelled";
    if (op.result) part(".result").replaceChildren(...render(op.result));
    // The button that had the focus is gone.
    if (final && hadFocus) (part(".retry").hidden ? card : part(".retry")).focus({ preventScroll: true });
    // Whoever waits for the result sees it, and whoever has gone on is not called back.
    if (final && card.contains(document.activeElement) && card.getBoundingClientRect().top >= 0) card.scrollIntoView({ block: "nearest" });
  };

  onClick(part(".cancel"), async () => {
    try {
      const response = await fetch(path, { method: "DELETE" });
      if (!response.ok) throw new Error();
      update(await response.json());
    } catch {
      part(".message").textContent = unreachable;
    }
  });
  onClick(part(".retry"), () => start(request, part(".message")));

  update(operation);
  document.getElementById("operations").hidden = false;
  document.getElementById("list").prepend(card);
  card.focus({ preventScroll: true });
  const { top } = card.getBoundingClientRect();
  if (top < 0 || top + roomForCard > innerHeight) card.scrollIntoView();
  follow(path, update, part(".message"), () => current.finished_at !== null);
}

// onClick runs an action, and ignores clicks while it runs. It does not disable the button, which would lose the focus.
function onClick(button, action) {
  button.addEventListener("click", async () => {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    await action();
    button.ariaDisabled = "false";
  });
}

const roomForCard = 240; // pixels of a card that must be in view
const pollEvery = 500, pollAtMost = 8000; // milliseconds

// follow asks for an operation until it is over, less often while the service cannot be reached.
async function follow(path, update, message, over) {
  for (let wait = pollEvery; !over();) {
    await new Promise(resolve => setTimeout(resolve, wait));
    try {
      const response = await fetch(path, { headers: { "Accept": "application/json" }, signal: AbortSignal.timeout(10_000) });
      if (response.status === 404) {
        message.textContent = "The service no longer knows this operation.";
        return;
      }
      if (!response.ok) throw new Error();
      const operation = await response.json();
      if (message.textContent === unreachable) message.textContent = "";
      update(operation);
      wait = pollEvery;
    } catch {
      message.textContent = unreachable;
      wait = Math.min(2 * wait, pollAtMost);
    }
  }
}

function seconds(milliseconds) {
  return (milliseconds / 1000).toFixed(milliseconds < 10_000 ? 1 : 0) + " s";
}

// render makes elements of a result. All its texts are set as text, never as HTML.
function render(result) {
  if (result.questions) return [list("ol", result.questions)];
  return [
    element("h4", "Score: " + result.score + " of 5"),
    element("p", result.summary),
    element("h4", "Good"), list("ul", result.strengths),
    element("h4", "To improve"), list("ul", result.improvements),
  ];
}

function list(name, texts) {
  const all = document.createElement(name);
  all.append(...texts.map(text => element("li", text)));
  return all;
}

function element(name, text) {
  const e = document.createElement(name);
  e.textContent = text;
  return e;
}

// The strip shows what the guard is doing now. The service answers for it on its own machine only.
const liveEvery = 1000;

async function live() {
  const strip = document.getElementById("live");
  try {
    const response = await fetch("/debug/aiguard?format=json", { cache: "no-store" });
    if (response.status === 403) return; // from another machine: no strip
    if (!response.ok) throw new Error();
    const { stats, routes } = await response.json();
    const parts = [
      stats.in_flight + (stats.limit ? " of " + stats.limit : "") + " slots in use",
      stats.waiting + " waiting",
      stats.refused + " refused",
      stats.retries + " retries",
    ];
    const paused = routes.filter(route => route.state !== "open").length;
    if (paused) parts.push(paused + (paused === 1 ? " route" : " routes") + " paused or down");
    document.getElementById("live-text").textContent = parts.join(", ");
    strip.hidden = false;
  } catch {
    strip.hidden = true;
  }
  setTimeout(live, liveEvery);
}

live();
