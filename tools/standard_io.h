// Standard output carries results only; standard error the rest, and messages about progress or
// state only if it is a terminal.
#pragma once

#include <istream>
#include <string>
#include <string_view>

#include "core/base/error.h"

namespace stoker::tools {

// Writes results and flushes, so that a reader sees each as it comes. kCancelled if the reader went
// away, which main() takes for the end of the work and no fault.
Status write_output(std::string_view text);

// The next line without its end ("\n" or "\r\n"). False at the end of the input.
bool read_line(std::istream& input, std::string& line);

// A text file that the user named, or standard input for "-". At most 64 MiB.
Result<std::string> read_input(const std::string& path);

// `text` for a terminal: control characters other than newline and tab are left out, so that no
// answer can move the cursor or change settings.
std::string without_controls(std::string_view text);

}  // namespace stoker::tools
