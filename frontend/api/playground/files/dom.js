// Makes elements. Text becomes text nodes: nothing here, or in any other file, makes HTML of text.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  const { dataset, ...rest } = properties;
  Object.assign(made, rest);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

export const byId = (id) => document.getElementById(id);

// Calls `draw` once before the next frame, however often it is asked for; `now` draws at once.
export function perFrame(draw) {
  let asked = 0;
  return {
    ask() {
      asked ||= requestAnimationFrame(() => { asked = 0; draw(); });
    },
    now() {
      cancelAnimationFrame(asked);
      asked = 0;
      draw();
    },
  };
}
