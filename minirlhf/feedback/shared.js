// What both pages share: requests, elements, texts, messages.
const $ = id => document.getElementById(id)
const token = new URLSearchParams(location.search).get("token") || ""
const byTouch = matchMedia("(max-width: 40rem), (pointer: coarse)").matches
const SPEAKERS = {user: "Human", assistant: "Assistant", system: "System", text: "Text to continue"}

/** Ask the server; a content makes it a POST. Throws Error with a message for the person. */
async function fetchFrom(path, content, more = {}) {
  const options = {headers: {"X-Token": token}, ...more}
  if (content !== undefined) {
    options.method = "POST"
    options.body = JSON.stringify(content)
  }
  let answer
  try {
    answer = await fetch(path, options)
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw Error("label.py cannot be reached. Nothing on this page is lost: start the same command "
      + "again, then go on here.")
  }
  if (answer.ok) return answer
  const problem = await answer.json().catch(() => ({}))
  throw Error(problem.error || "label.py answered " + answer.status)
}
const call = async (path, content) => (await fetchFrom(path, content)).json()

function element(tag, className = "", ...children) {
  const made = document.createElement(tag)
  made.className = className
  made.append(...children)
  return made
}

/** Put a text into a box, its ``` blocks as code. It is text all the way, never HTML. */
function fill(box, text, whenEmpty = "(an empty response)") {
  const parts = [[]]                        // lines outside and inside of blocks by turns
  const languages = {}
  for (const line of text.split("\n")) {
    const fence = /^\s*```([^`]*)$/.exec(line)
    if (!fence) { parts.at(-1).push(line); continue }
    languages[parts.length] = fence[1].trim()
    parts.push([])
  }
  box.replaceChildren()
  parts.forEach((lines, number) => {
    const part = lines.join("\n")
    if (parts.length === 1) return box.append(part)
    if (number % 2 === 0) return box.append(part.replace(/^\n+|\n+$/g, ""))
    const code = element("pre", "", part)
    if (languages[number]) code.dataset.language = languages[number]
    box.append(code)
  })
  box.classList.toggle("empty", !text)
  if (!text) box.append(whenEmpty)
}
function textBox(text) {
  const box = element("div", "text")
  fill(box, text)
  return box
}

/** A box that scrolls fades at its end, and keys can scroll it. */
const sizes = new ResizeObserver(entries => entries.forEach(entry => fade(entry.target)))
function fade(box) {
  const scrolls = box.scrollHeight > box.clientHeight + 4
  box.classList.toggle("more", scrolls && box.scrollTop + box.clientHeight < box.scrollHeight - 4)
  if (scrolls) box.tabIndex = 0
  else box.removeAttribute("tabindex")
}
function fadeAtEnd(box) {
  box.addEventListener("scroll", () => fade(box))
  sizes.observe(box)
}

function turn(role, text, speakers = SPEAKERS) {
  return element("div", "turn " + role, element("h3", "", speakers[role]), textBox(text))
}

/** A visible message, which screen readers hear as well. */
function say(text, alarm = false) {
  $("say").textContent = text.slice(0, 1).toUpperCase() + text.slice(1)
  $("say").classList.toggle("alarm", alarm)
}
/** A message for screen readers alone. */
function tell(text) { $("tell").textContent = text }

/** The last page of a sitting. commands: what can be run next. */
function end(title, text, commands, ...more) {
  const heading = element("h1", "", title)
  heading.tabIndex = -1
  $("end").replaceChildren(heading, element("p", "", text), ...more)
  if (commands) $("end").append(element("p", "", "Next:"), element("pre", "", commands))
  $("end").hidden = false
  document.body.classList.add("ended")
  heading.focus()
}

async function showGuidelines() {
  const {guidelines} = await call("guidelines")
  if (!guidelines) return
  $("guidelines").hidden = false
  $("guidelines").append(textBox(guidelines))
}

// a press of the mouse leaves the keyboard's focus where it is
addEventListener("mousedown", event => {
  if (event.target.closest("button")) event.preventDefault()
})
