"use strict";
// Takes what the server streams and renews the page's parts, keeping focus, marks and what is folded out.
(() => {
  const address = document.body.dataset.live;
  const told = document.getElementById("stream");
  const say = (word, kind) => {
    if (told.textContent === word) return;
    told.textContent = word;
    told.className = `stream ${kind}`;
  };

  const alike = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  const renew = (old, fresh) => {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    if (old.hasAttribute("data-keep")) return;
    for (const { name } of [...old.attributes]) {
      if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    renewChildren(old, fresh);
  };
  const renewChildren = (old, fresh) => {
    let at = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      let found = at && alike(at, wanted) ? at : null;
      if (!found && wanted.id) {
        const known = document.getElementById(wanted.id);
        if (known && known.parentNode === old && alike(known, wanted)) {
          old.insertBefore(known, at);
          found = known;
        }
      }
      if (found) {
        renew(found, wanted);
        at = found.nextSibling;
      } else {
        old.insertBefore(wanted, at);
      }
    }
    while (at) {
      const next = at.nextSibling;
      at.remove();
      at = next;
    }
  };

  const take = (event) => {
    const { charts, ...parts } = JSON.parse(event.data);
    for (const [name, text] of Object.entries(parts)) {
      const place = document.getElementById(name);
      if (!place) continue;
      const fresh = document.createElement("template");
      fresh.innerHTML = text;
      renewChildren(place, fresh.content);
    }
    if (charts) document.dispatchEvent(new CustomEvent("farshore-charts", { detail: charts }));
    say("live", "good");
  };

  let source = null;
  const open = () => {
    source = new EventSource(address);
    source.addEventListener("open", () => say("live", "good"));
    source.addEventListener("parts", take);
    source.addEventListener("error", () => {
      const gone = source.readyState === EventSource.CLOSED;
      say(gone ? "not live: reload the page" : "reconnecting…", "bad");
    });
  };
  const close = () => {
    source?.close();
    source = null;
  };
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close();
    else if (!source) open();
  });
  window.addEventListener("pagehide", close);
  if (!document.hidden) open();
})();
