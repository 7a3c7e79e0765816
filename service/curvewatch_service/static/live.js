"use strict";
// Keeps a page up to date: fetches it again and exchanges the parts marked `data-live` that have changed.
// Tells the rest of the page with the event `curvewatch:refreshed`. Stops once the run has ended.
(() => {
  const main = document.getElementById("content");
  const away = document.getElementById("away");
  const period = Number(main.dataset.period);
  let answeredAt = new Date();

  const ended = () => document.querySelector("[data-ended]") !== null;

  function exchange(fresh) {
    for (const part of document.querySelectorAll("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (other === null || part.isEqualNode(other)) continue;
      part.replaceWith(document.adoptNode(other));
    }
    document.title = fresh.title;
  }

  function tellAway(reason) {
    away.textContent = `${reason} What you see is from ${answeredAt.toLocaleTimeString()}. Trying again …`;
    away.hidden = false;
  }

  async function refresh() {
    let response;
    try {
      response = await fetch(location.href, { signal: AbortSignal.timeout(15000), cache: "no-store" });
    } catch {
      tellAway("The service does not answer.");
      return;
    }
    if (response.redirected) {
      location.assign(response.url); // the session is over: sign in again
      return;
    }
    if (!response.ok) {
      tellAway(`The service answered with error ${response.status}.`);
      return;
    }
    exchange(new DOMParser().parseFromString(await response.text(), "text/html"));
    answeredAt = new Date();
    away.hidden = true;
    document.dispatchEvent(new CustomEvent("curvewatch:refreshed"));
  }

  async function loop() {
    if (!document.hidden) await refresh();
    if (!ended()) setTimeout(loop, period);
  }

  if (!ended()) setTimeout(loop, period);
})();
