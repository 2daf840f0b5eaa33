"use strict";
// The page's policy allows no style attribute in markup, and Plotly's script sets a few: let it set properties instead.
(() => {
  const set = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
})();
