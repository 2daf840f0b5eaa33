"use strict";
// The security policy forbids style attributes; plotly.js sets some, so set the equivalent style properties instead.
(() => {
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
})();
