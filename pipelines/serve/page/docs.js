// /openapi.json as tables.

const make = (tag, text, ...children) => {
  const element = Object.assign(document.createElement(tag), { textContent: text });
  element.append(...children);
  return element;
};

const table = (heads, rows) => make("table", "",
  make("thead", "", make("tr", "", ...heads.map((head) => make("th", head)))),
  make("tbody", "", ...rows.map((cells) => make("tr", "", ...cells.map((cell) => make("td", cell))))));

const typeOf = (field) => (field.anyOf ?? [field]).map((kind) => kind.type ?? "").filter((kind) => kind !== "null").join(" or ");
const range = ({ anyOf, ...field }) => Object.entries(Object.assign({}, ...(anyOf ?? []), field))
  .filter(([name]) => /imum|Length|enum|default/i.test(name)).map(([name, value]) => `${name}: ${JSON.stringify(value)}`).join(", ");

const { paths } = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const section = make("section", "", make("h2", `${method.toUpperCase()} ${path}`), make("p", [route.summary, route.description].filter(Boolean).join(". ")));
    section.className = "card";
    for (const [type, { schema }] of Object.entries(route.requestBody?.content ?? {})) {
      section.append(make("p", `Body: ${type}`));
      const own = schema.properties.settings?.properties ?? schema.properties;
      section.append(table(["field", "type", "range", "meaning"], Object.entries(own).map(([name, field]) => [name, typeOf(field), range(field), field.description ?? ""])));
    }
    document.getElementById("routes").append(section);
  }
}
