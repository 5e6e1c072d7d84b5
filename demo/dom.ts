/** The element of the page with this id. */
export function byId<T extends HTMLElement>(id: string, type: abstract new () => T): T {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new TypeError(`the page has no ${type.name} with the id ${id}`);
  return element;
}

/** A new element with a class and content. */
export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = '',
  ...content: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

/** The value of the chosen radio button of a group. */
export function chosen(form: HTMLFormElement, group: string): string {
  const radios = form.elements.namedItem(group);
  return radios instanceof RadioNodeList ? radios.value : '';
}

/** Lets the page draw before something that keeps it busy. */
export function nextFrame(): Promise<void> {
  // A page in the background draws no frames.
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, 50);
    requestAnimationFrame(() => {
      clearTimeout(timer);
      setTimeout(resolve, 0);
    });
  });
}
