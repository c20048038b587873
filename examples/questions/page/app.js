"use strict";

const statuses = { pending: "Waiting", running: "Running", succeeded: "Done", failed: "Failed", cancelled: "Cancelled" };
const unreachable = "The service could not be reached. Please try again in a moment.";

for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", event => {
    event.preventDefault();
    start(form);
  });
}

// start asks the service for an operation and shows it, or why there is none.
async function start(form) {
  const message = form.querySelector(".message");
  const texts = Object.fromEntries(new FormData(form));
  const fault = document.getElementById("fault")?.value;
  message.textContent = "";
  try {
    const response = await fetch(form.dataset.path + (fault ? "?fault=" + encodeURIComponent(fault) : ""), {
      method: "POST",
      headers: { "Content-Type": "application/json", "Accept": "application/json" },
      body: JSON.stringify(texts),
    });
    const answer = await response.json();
    if (!response.ok) {
      message.textContent = answer.detail;
      return;
    }
    show(form.dataset.title + ": " + Object.values(texts)[0], response.headers.get("Location"), answer);
  } catch {
    message.textContent = unreachable;
  }
}

// show adds an operation to the list and follows it to its end.
function show(title, path, operation) {
  const card = document.getElementById("operation").content.firstElementChild.cloneNode(true);
  const part = name => card.querySelector(name);
  part("h3").textContent = title;
  part("progress").setAttribute("aria-label", "Progress of " + title);
  part(".cancel").setAttribute("aria-label", "Cancel " + title);
  let revision = 0;
  const update = op => {
    if (op.revision <= revision) return; // an answer that a later one has overtaken
    revision = op.revision;
    const final = op.finished_at !== null;
    card.className = "card operation " + op.status + (final ? " final" : "");
    if (part(".status").textContent !== statuses[op.status]) part(".status").textContent = statuses[op.status];
    part("progress").value = op.progress;
    part(".note").textContent = op.cancel_requested ? "Cancelling" : op.progress_note ?? "";
    part(".message").textContent = op.error_message ?? "";
    if (op.result) part(".result").replaceChildren(...render(op.result));
  };
  part(".cancel").addEventListener("click", async () => {
    part(".cancel").disabled = true;
    try {
      const response = await fetch(path, { method: "DELETE" });
      if (!response.ok) throw new Error();
      update(await response.json());
    } catch {
      part(".message").textContent = unreachable;
      part(".cancel").disabled = false;
    }
  });
  update(operation);
  document.getElementById("operations").hidden = false;
  document.getElementById("list").prepend(card);
  watch(path + "/events", update, () => { part(".message").textContent = unreachable; });
}

// Browsers open six connections to a host over HTTP/1.1: two stay free for requests. An operation whose turn comes
// late misses nothing, for its first event is how it is by then.
const maxStreams = 4;
let streams = 0;
const waiting = [];

// watch gives each event of an operation to update, until it is over.
function watch(path, update, lost) {
  if (streams === maxStreams) {
    waiting.push([path, update, lost]);
    return;
  }
  streams++;
  const source = new EventSource(path);
  const end = () => {
    source.close();
    streams--;
    if (waiting.length > 0) watch(...waiting.shift());
  };
  source.addEventListener("progress", event => update(JSON.parse(event.data)));
  source.addEventListener("finished", event => {
    update(JSON.parse(event.data));
    end();
  });
  source.addEventListener("error", () => {
    if (source.readyState !== EventSource.CLOSED) return; // it comes back by itself
    lost();
    end();
  });
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
