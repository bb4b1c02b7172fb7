#include "tools/line_editor.h"

#include <histedit.h>

#include <clocale>
#include <csignal>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/text/utf8.h"

namespace stoker::tools {
namespace {

constexpr int kHistoryEntries = 1000;
// Terminals put pasted text between these, if asked to (xterm's "bracketed paste").
constexpr const char* kPasteOn = "\033[?2004h";
constexpr const char* kPasteOff = "\033[?2004l";
constexpr std::wstring_view kPasteEnd = L"\033[201~";

void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  if (MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

struct LineEditor::State {
  EditLine* editor = nullptr;
  History* history = nullptr;
  HistEvent event{};
  std::FILE* output = nullptr;
  std::filesystem::path history_file;
  std::string prompt;
  bool interrupted = false;
  std::string interrupted_text;

  static State& of(EditLine* editor) {
    void* state = nullptr;
    el_get(editor, EL_CLIENTDATA, &state);
    return *static_cast<State*>(state);
  }
  static char* show_prompt(EditLine* editor) { return of(editor).prompt.data(); }
  static unsigned char on_interrupt(EditLine* editor, int /*key*/);
  static unsigned char on_suspend(EditLine* editor, int /*key*/);
  static unsigned char on_newline(EditLine* editor, int /*key*/);
  static unsigned char on_paste(EditLine* editor, int /*key*/);

  void bind_keys();
  void remember(const std::string& text);
};

// Ctrl-C arrives as a character here: signals are off while a line is edited.
unsigned char LineEditor::State::on_interrupt(EditLine* editor, int /*key*/) {
  State& state = of(editor);
  const LineInfo* const line = el_line(editor);
  state.interrupted = true;
  state.interrupted_text.assign(line->buffer, line->lastchar);
  return CC_EOF;
}

unsigned char LineEditor::State::on_suspend(EditLine* editor, int /*key*/) {
  el_set(editor, EL_PREP_TERM, 0);
  std::raise(SIGTSTP);
  el_set(editor, EL_PREP_TERM, 1);
  return CC_REDISPLAY;
}

unsigned char LineEditor::State::on_newline(EditLine* editor, int /*key*/) {
  return el_winsertstr(editor, L"\n") == 0 ? CC_REFRESH : CC_ERROR;
}

unsigned char LineEditor::State::on_paste(EditLine* editor, int /*key*/) {
  std::wstring text;
  wchar_t c = 0;
  while (!text.ends_with(kPasteEnd)) {
    if (el_wgetc(editor, &c) != 1) return CC_EOF;
    text.push_back(c == L'\r' ? L'\n' : c);
  }
  text.resize(text.size() - kPasteEnd.size());
  std::erase_if(text,
                [](wchar_t w) { return (w < L' ' && w != L'\n' && w != L'\t') || w == 0x7f; });
  while (text.ends_with(L'\n')) text.pop_back();
  return el_winsertstr(editor, text.c_str()) == 0 ? CC_REFRESH : CC_ERROR;
}

void LineEditor::State::bind_keys() {
  struct Function {
    const wchar_t* name;
    const wchar_t* help;
    unsigned char (*run)(EditLine*, int);
  };
  // The narrow el_set() copies the names and never frees them.
  for (const Function& function :
       {Function{L"stoker-interrupt", L"Give the line up", on_interrupt},
        Function{L"stoker-suspend", L"Stop the program as job control does", on_suspend},
        Function{L"stoker-newline", L"Begin another line of the message", on_newline},
        Function{L"stoker-paste", L"Take pasted text as it is", on_paste}}) {
    el_wset(editor, EL_ADDFN, function.name, function.help, function.run);
  }
  using Binding = std::pair<const char*, const char*>;
  for (const auto& [key, command] :
       {Binding{"^C", "stoker-interrupt"}, Binding{"^Z", "stoker-suspend"},
        Binding{"\\e\\r", "stoker-newline"}, Binding{"\\e\\n", "stoker-newline"},
        Binding{"\\e[200~", "stoker-paste"}, Binding{"^R", "em-inc-search-prev"},
        Binding{"\\e[3~", "ed-delete-next-char"}, Binding{"\\e[H", "ed-move-to-beg"},
        Binding{"\\e[F", "ed-move-to-end"}, Binding{"\\e[1~", "ed-move-to-beg"},
        Binding{"\\e[4~", "ed-move-to-end"}, Binding{"\\e[1;5D", "ed-prev-word"},
        Binding{"\\e[1;5C", "em-next-word"}}) {
    el_set(editor, EL_BIND, key, command, nullptr);
  }
}

void LineEditor::State::remember(const std::string& text) {
  if (text.empty()) return;
  ::history(history, &event, H_ENTER, text.c_str());
  if (history_file.empty()) return;
  std::error_code ignored;
  std::filesystem::create_directories(history_file.parent_path(), ignored);
  ::history(history, &event, H_SAVE, history_file.c_str());
}

std::filesystem::path default_history_file() {
  const char* const state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state == '/') {
    return std::filesystem::path(state) / "stoker" / "history";
  }
  const char* const home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return std::filesystem::path(home) / ".local" / "state" / "stoker" / "history";
}

LineEditor::LineEditor(std::FILE* input, std::FILE* output, std::filesystem::path history_file)
    : state_(std::make_unique<State>()) {
  use_utf8();
  State& state = *state_;
  state.output = output;
  state.history_file = std::move(history_file);
  state.history = history_init();
  ::history(state.history, &state.event, H_SETSIZE, kHistoryEntries);
  ::history(state.history, &state.event, H_SETUNIQUE, 1);
  if (!state.history_file.empty()) {
    ::history(state.history, &state.event, H_LOAD, state.history_file.c_str());
  }
  state.editor = el_init("stoker", input, output, stderr);
  el_set(state.editor, EL_CLIENTDATA, &state);
  el_set(state.editor, EL_PROMPT, State::show_prompt);
  el_set(state.editor, EL_EDITOR, "emacs");
  el_set(state.editor, EL_SIGNAL, 0);
  el_set(state.editor, EL_HIST, ::history, state.history);
  el_set(state.editor, EL_SETTY, "-d", "-isig", nullptr);
  state.bind_keys();
}

LineEditor::~LineEditor() {
  el_end(state_->editor);
  history_end(state_->history);
}

LineEditor::Input LineEditor::read(const std::string& prompt) {
  State& state = *state_;
  Input input;
  state.prompt = prompt;
  for (;;) {
    state.interrupted = false;
    // Before the prompt shows: a key that answers it must not meet the line discipline of a
    // terminal that is still in its usual mode, where Ctrl-D and Ctrl-C are no characters.
    el_set(state.editor, EL_PREP_TERM, 1);
    std::fputs(kPasteOn, state.output);
    std::fflush(state.output);
    int count = 0;
    const char* const line = el_gets(state.editor, &count);
    std::fputs(kPasteOff, state.output);
    if (line == nullptr || count <= 0) {
      std::fputs(state.interrupted ? "^C\n" : "\n", state.output);
      std::fflush(state.output);
      input.outcome = state.interrupted ? Outcome::kInterrupted : Outcome::kEnd;
      input.text += state.interrupted ? state.interrupted_text : std::string();
      return input;
    }
    std::string_view text(line, static_cast<std::size_t>(count));
    if (text.ends_with('\n')) text.remove_suffix(1);
    const bool goes_on = text.ends_with('\\');
    if (goes_on) text.remove_suffix(1);
    append_valid_utf8(text, &input.text);
    if (!goes_on) break;
    input.text += '\n';
    state.prompt = "... ";
  }
  input.outcome = Outcome::kText;
  state.remember(input.text);
  return input;
}

}  // namespace stoker::tools
