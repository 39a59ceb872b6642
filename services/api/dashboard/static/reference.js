// Shows the operations of the gateway. Swagger UI reads the address of the description from the page.
"use strict";

const area = document.getElementById("reference");
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
SwaggerUIBundle({url: area.dataset.url, domNode: area, deepLinking: true, docExpansion: "list", defaultModelsExpandDepth: -1, validatorUrl: null});
