// What Gradio runs once for the row of examples.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("example", { index: +button.dataset.index });
});
