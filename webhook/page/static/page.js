// Keeps the page fresh, and the keyboard useful. Without it everything works, by hand.
"use strict";

const RENEW_MS = 5000;

function isBusy(part) {
  const open = part.querySelector("details[open]");
  const selection = document.getSelection();
  const isSelecting = selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  return Boolean(open) || isSelecting || part.contains(document.activeElement);
}

async function renew() {
  const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
  if (answer.redirected) location.reload();
  if (!answer.ok) throw new Error(answer.statusText);
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const head = document.querySelector("[data-state]");
  const freshHead = fresh.querySelector("[data-state]");
  // Another state brings other parts along, such as the video.
  if (head && freshHead && head.dataset.state !== freshHead.dataset.state) return location.reload();
  for (const part of document.querySelectorAll("[data-live]")) {
    const twin = fresh.querySelector(`[data-live="${part.dataset.live}"]`);
    if (twin && !isBusy(part) && twin.innerHTML !== part.innerHTML) part.innerHTML = twin.innerHTML;
  }
}

// One look after the other: a slow receiver is not asked faster than it answers.
async function keepFresh(live) {
  const told = live.nextElementSibling;
  live.checked = localStorage.getItem("live") !== "off";
  live.addEventListener("change", () => localStorage.setItem("live", live.checked ? "on" : "off"));
  for (;;) {
    await new Promise((done) => setTimeout(done, RENEW_MS));
    if (!live.checked || document.hidden) continue;
    const isFresh = await renew().then(() => true, () => false);
    // Stale numbers must not look current.
    told.textContent = isFresh ? "Live" : "No answer";
    told.classList.toggle("bad", !isFresh);
  }
}

// The receiver sends few files at once and answers 503 to the next, which a player takes for an end.
function playLater(video) {
  let tries = 10;
  video.addEventListener("error", () => {
    if (tries-- > 0) setTimeout(() => video.load(), RENEW_MS);
  });
}

function step(by) {
  const links = [...document.querySelectorAll("table.jobs a.title")];
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? 0 : Math.max(0, Math.min(links.length - 1, at + by))].focus();
}

function listen(event) {
  const isTyping = event.target.closest("input, select, textarea");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.getElementById("text");
  if (event.key === "/" && search) {
    event.preventDefault();
    search.focus();
    search.select();
  }
  if (event.key === "j") step(1);
  if (event.key === "k") step(-1);
}

// The cookie is strict: a visitor who follows a link from elsewhere seems to have none, but has.
async function enter(form) {
  const answer = await fetch(form.dataset.session);
  if (answer.status === 204) location.replace(form.dataset.next);
}

// A filter that is not set has no place in the address.
function dropEmpty(event) {
  for (const field of event.target.elements) {
    if (field.name && !field.value) field.disabled = true;
  }
}

const live = document.getElementById("live");
const login = document.querySelector("form[data-session]");
const filters = document.querySelector("form.filters");
const video = document.querySelector("video");
if (live) keepFresh(live);
if (video) playLater(video);
if (login) enter(login).catch(() => undefined);
if (filters) {
  filters.addEventListener("submit", dropEmpty);
  filters.state.addEventListener("change", () => filters.requestSubmit());
  addEventListener("pageshow", () => {
    for (const field of filters.elements) field.disabled = false;
  });
}
addEventListener("keydown", listen);
