// tokenizer.json writes its split patterns in Oniguruma's dialect; we match with PCRE2. Where both
// read a construct alike it passes, `\s` is written out (see the source), and everything else is
// refused: a pattern that compiles in both and splits differently would give wrong ids without a
// sound.
#pragma once

#include <string>
#include <string_view>

#include "core/base/error.h"

namespace stoker {

// The same pattern for PCRE2 in UTF and UCP mode. Requires: `pattern` is valid UTF-8.
Result<std::string> to_pcre2_pattern(std::string_view pattern);

}  // namespace stoker
