// The page of a server: sends a text or a file to /search, and shows what is found. All that comes back is set as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const chosen = () => at("query").selectedOptions[0];

function toggle() {
  const sentences = chosen().dataset.sentences === "yes";
  at("text").hidden = !sentences;
  at("file").hidden = sentences;
  at("file").accept = chosen().dataset.accept;
}

function say(words, wrong) {
  at("said").textContent = words;
  at("said").className = wrong ? "wrong" : "";
}

function made(tag, text) {
  const element = document.createElement(tag);
  // Control characters and bidirectional marks become one visible sign.
  if (text !== undefined) element.textContent = text.replace(/[\u0000-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
  return element;
}

function card(one) {
  const item = made("li");
  if (one.picture && one.picture.startsWith("data:image/")) {
    const picture = made("img");
    picture.src = one.picture;
    picture.alt = one.key;
    item.append(picture);
  }
  if (one.sound && one.sound.startsWith("data:audio/")) {
    const sound = made("audio");
    sound.controls = true;
    sound.preload = "none";
    sound.src = one.sound;
    item.append(sound);
  }
  if (one.text) item.append(made("div", one.text));
  item.append(made("small", one.score.toFixed(3) + "  " + one.key));
  return item;
}

function show(found) {
  at("found").replaceChildren();
  for (const [name, samples] of Object.entries(found)) {
    const list = made("ol");
    list.append(...samples.map(card));
    at("found").append(made("h2", name), list);
  }
}

async function ask(event) {
  event.preventDefault();
  const sentences = chosen().dataset.sentences === "yes";
  const body = sentences ? at("text").value.trim() : at("file").files[0];
  if (!body) return say(sentences ? "Write a text first." : "Choose a file first.", true);
  const parameters = new URLSearchParams({ top: at("top").value, show: "true" });
  for (const box of document.querySelectorAll("input[name=in]:checked")) parameters.append("in", box.value);
  if (!parameters.has("in")) return say("Choose what to search in.", true);
  say("searching ...", false);
  const began = performance.now();
  try {
    const type = { "Content-Type": sentences ? "text/plain;charset=utf-8" : "application/octet-stream" };
    const path = "search/" + encodeURIComponent(chosen().value) + "?" + parameters;
    const answer = await fetch(path, { method: "POST", body: body, headers: type });
    const said = await answer.json();
    if (!answer.ok) return say(said.error || "the server refused this", true);
    show(said.found);
    say("found in " + Math.round(performance.now() - began) + " ms", false);
  } catch (error) {
    say("the server does not answer", true);
  }
}

at("query").addEventListener("change", toggle);
at("ask").addEventListener("submit", ask);
toggle();
// A link such as /?q=a+red+circle asks at once.
const given = new URLSearchParams(location.search).get("q");
if (given && chosen().dataset.sentences === "yes") {
  at("text").value = given;
  at("ask").requestSubmit();
}
