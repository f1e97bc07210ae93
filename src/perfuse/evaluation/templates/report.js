// Draws each chart when it comes into view (or before printing); the data stand beside it as JSON.
(function () {
  "use strict";
  var theme = JSON.parse(document.getElementById("theme").textContent);
  var touch = window.matchMedia("(pointer: coarse)").matches;
  var boxes = Array.prototype.slice.call(document.querySelectorAll(".chart"));

  function draw(box) {
    var source = box.querySelector("script");
    if (!source) return;
    var figure = JSON.parse(source.textContent);
    source.remove();
    var small = box.clientWidth < 300;
    figure.layout.template = theme;
    // A finger on a chart scrolls the page; a mouse zooms.
    if (touch || small) figure.layout.dragmode = false;
    Plotly.newPlot(box, figure.data, figure.layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: touch || small ? false : "hover",
      // No others: some would send the figure to a server.
      modeBarButtons: [["toImage", "resetScale2d"]],
      // SVG needs no image load, which the page's policy would forbid.
      toImageButtonOptions: { format: "svg", filename: "perfuse" },
      plotlyServerURL: ""
    });
  }

  var watcher = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) {
      if (!entry.isIntersecting) return;
      watcher.unobserve(entry.target);
      try {
        draw(entry.target);
      } catch (error) {  // the other charts are still drawn
        entry.target.textContent = "This chart could not be drawn: " + error.message;
      }
    });
  }, { rootMargin: "600px" });
  boxes.forEach(function (box) { watcher.observe(box); });

  // Paper is narrower than most windows, and plotly's width is fixed in pixels.
  window.addEventListener("beforeprint", function () {
    boxes.forEach(function (box) {
      if (!box.clientWidth) return;
      draw(box);
      var width = box.closest(".cases") ? 210 : box.closest(".three") ? 290 : Math.min(box.clientWidth, 520);
      Plotly.relayout(box, { width: width });
    });
  });
  window.addEventListener("afterprint", function () {
    boxes.forEach(function (box) {
      if (box.clientWidth) Plotly.relayout(box, { width: null, autosize: true });
    });
  });
})();
