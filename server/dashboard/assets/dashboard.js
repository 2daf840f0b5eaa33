"use strict";
// Receives server-sent events and updates the page's parts in place, so that focus, checkboxes and open details are kept.
(() => {
  const url = document.body.dataset.live;
  const status = document.getElementById("stream");
  const showStatus = (text, kind) => {
    if (status.textContent === text) return;
    status.textContent = text;
    status.className = `stream ${kind}`;
  };

  const isSame = (a, b) => a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
  const update = (old, fresh) => {
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
    updateChildren(old, fresh);
  };
  const updateChildren = (old, fresh) => {
    let cursor = old.firstChild;
    for (const target of [...fresh.childNodes]) {
      let found = cursor && isSame(cursor, target) ? cursor : null;
      if (!found && target.id) {
        const known = document.getElementById(target.id);
        if (known && known.parentNode === old && isSame(known, target)) {
          old.insertBefore(known, cursor);
          found = known;
        }
      }
      if (found) {
        update(found, target);
        cursor = found.nextSibling;
      } else {
        old.insertBefore(target, cursor);
      }
    }
    while (cursor) {
      const next = cursor.nextSibling;
      cursor.remove();
      cursor = next;
    }
  };

  const applyParts = (event) => {
    const { charts, ...parts } = JSON.parse(event.data);
    for (const [name, text] of Object.entries(parts)) {
      const element = document.getElementById(name);
      if (!element) continue;
      const fresh = document.createElement("template");
      fresh.innerHTML = text;
      updateChildren(element, fresh.content);
    }
    if (charts) document.dispatchEvent(new CustomEvent("farshore-charts", { detail: charts }));
    showStatus("live", "good");
  };

  let source = null;
  const open = () => {
    source = new EventSource(url);
    source.addEventListener("open", () => showStatus("live", "good"));
    source.addEventListener("parts", applyParts);
    source.addEventListener("error", () => {
      const closed = source.readyState === EventSource.CLOSED;
      showStatus(closed ? "not live: reload the page" : "reconnecting…", "bad");
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
