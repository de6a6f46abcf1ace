"use strict";
(function () {
  const tip = document.getElementById("tip");
  function show(text, box) {
    tip.textContent = text;
    tip.hidden = false;
    const width = tip.offsetWidth, height = tip.offsetHeight;
    const left = Math.min(Math.max(6, box.left + box.width / 2 - width / 2), innerWidth - width - 6);
    const above = box.top - height - 8;
    tip.style.left = left + "px";
    tip.style.top = (above > 4 ? above : box.bottom + 8) + "px";
  }
  function hide() { tip.hidden = true; }
  let keyed = false; // a mark that was reached by keys keeps what is said of it while the page scrolls to it
  addEventListener("scroll", function () { if (!keyed) hide(); }, { passive: true });
  addEventListener("pointermove", function (event) { if (event.movementX || event.movementY) keyed = false; }, { passive: true });
  addEventListener("keydown", function (event) { if (event.key === "Escape") hide(); });

  // Marks say what they are under a pointer, and one after the other by the arrow keys.
  function walk(svg, marks, say, leave) {
    let at = -1;
    function go(to) {
      const found = marks();
      if (!found.length) return;
      if (at >= 0) leave();
      at = (to + found.length) % found.length;
      keyed = true;
      say(found[at]);
    }
    svg.addEventListener("keydown", function (event) {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) go(at < 0 && step < 0 ? -1 : at + step);
      else if (event.key === "Home") go(0);
      else if (event.key === "End") go(-1);
      else return;
      event.preventDefault();
    });
    svg.addEventListener("blur", function () { leave(); hide(); at = -1; keyed = false; });
  }
  function marked(svg) {
    let active = null;
    function leave() { if (active) active.classList.remove("active"); active = null; }
    function say(mark) {
      leave();
      active = mark;
      mark.classList.add("active");
      show(mark.dataset.tip, mark.getBoundingClientRect());
    }
    svg.addEventListener("pointerover", function (event) {
      const mark = event.target.closest("[data-tip]");
      if (mark && mark.dataset.tip && !keyed) say(mark);
    });
    svg.addEventListener("pointerout", function () { if (!keyed) { leave(); hide(); } });
    walk(svg, function () { return Array.from(svg.querySelectorAll(".mark[data-tip]")); }, say, leave);
  }
  document.querySelectorAll("svg.chart").forEach(marked);

  // The map: colours, layouts, classes that are hidden, and the nearest rows of a point.
  function mapped(box) {
    const data = JSON.parse(box.querySelector("script").textContent);
    const svg = box.querySelector("svg.map"), keys = box.querySelector(".keys");
    const points = Array.from(svg.querySelectorAll("circle"));
    const sample = box.querySelector("svg.sample");
    const [layout, colour] = box.querySelectorAll("select");
    const names = Object.keys(data.layouts);
    let hidden = new Set(), near = [];
    function column() { return colour ? data.columns[Number(colour.value)] : null; }
    function kind(code, ordered) {
      if (code < 0) return "none";
      if (!ordered) return "f" + (code % 8);
      const last = Math.max(1, column().classes.length - 1);
      return "q" + Math.round((4 * code) / last);
    }
    function paint() {
      const chosen = column(), places = data.layouts[names[Number(layout.value)]];
      points.forEach(function (point, at) {
        const code = chosen ? chosen.codes[at] : -1;
        point.setAttribute("cx", places[2 * at]);
        point.setAttribute("cy", 1000 - places[2 * at + 1]);
        point.setAttribute("class", "p " + kind(code, chosen && chosen.ordered) + (hidden.has(code) ? " gone" : ""));
      });
    }
    function list() {
      hidden = new Set();
      keys.replaceChildren();
      const chosen = column();
      if (!chosen) return;
      const codes = chosen.classes.map(function (_, code) { return code; });
      if (chosen.codes.includes(-1)) codes.push(-1);
      codes.forEach(function (code) {
        const item = document.createElement("li"), button = document.createElement("button");
        const mark = sample.cloneNode(true), dot = mark.querySelector("circle");
        dot.setAttribute("class", kind(code, chosen.ordered));
        const name = document.createElement("bdi");
        const number = chosen.codes.filter(function (each) { return each === code; }).length;
        name.textContent = (code < 0 ? "not known" : chosen.classes[code]) + " (" + number + ")";
        button.type = "button";
        button.setAttribute("aria-pressed", "true");
        button.append(mark, name);
        button.addEventListener("click", function () {
          if (hidden.has(code)) hidden.delete(code); else hidden.add(code);
          button.setAttribute("aria-pressed", String(!hidden.has(code)));
          paint();
        });
        item.append(button);
        keys.append(item);
      });
    }
    function leave() {
      near.forEach(function (point) { point.classList.remove("active", "near"); });
      near = [];
    }
    function say(point) {
      leave();
      const at = points.indexOf(point), around = data.near[at] || [], chosen = column();
      let text = "row " + data.rows[at];
      if (chosen) text += "; " + chosen.name + ": " + (chosen.codes[at] < 0 ? "not known" : chosen.classes[chosen.codes[at]]);
      if (around.length) text += "; nearest rows of others: " + around.map(function (other) { return data.rows[other]; }).join(", ");
      around.forEach(function (other) { points[other].classList.add("near"); near.push(points[other]); });
      point.classList.add("active");
      near.push(point);
      show(text, point.getBoundingClientRect());
    }
    svg.addEventListener("pointerover", function (event) { if (event.target.matches("circle") && !keyed) say(event.target); });
    svg.addEventListener("pointerout", function () { if (!keyed) { leave(); hide(); } });
    walk(svg, function () { return points.filter(function (point) { return !point.classList.contains("gone"); }); }, say, leave);
    layout.addEventListener("change", paint);
    if (colour) colour.addEventListener("change", function () { list(); paint(); });
    list();
    paint();
  }
  document.querySelectorAll(".mapped").forEach(mapped);
})();
