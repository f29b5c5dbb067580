// What Gradio runs once for the page.
// A name that is typed and not entered becomes a chip when its field is left. That may move the button away while the mouse
// is down on it, and a browser then sees no click: here it is one all the same.
() => {
  let down = null;
  document.addEventListener("mousedown", (event) => { down = event.target.closest("#cc-run") && event; }, true);
  document.addEventListener("mouseup", (event) => {
    const stayed = down && Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 5;
    if (stayed && !event.target.closest("#cc-run")) document.querySelector("#cc-run").click();
    down = null;
  }, true);
}
