// The texts that structure a prompt or an answer. The bar is U+FF5C, the gap between words U+2581.
#pragma once

#include <array>
#include <string_view>

namespace stoker::markers {

inline constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
inline constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
inline constexpr std::string_view kUser = "<｜User｜>";
inline constexpr std::string_view kAssistant = "<｜Assistant｜>";
inline constexpr std::string_view kThinkOpen = "<think>";
inline constexpr std::string_view kThinkClose = "</think>";

// V3.2's tags: <｜DSML｜name ...> and </｜DSML｜name>.
inline constexpr std::string_view kDsml = "｜DSML｜";
inline constexpr std::string_view kDsmlOpen = "<｜DSML｜";
inline constexpr std::string_view kDsmlClose = "</｜DSML｜";
inline constexpr std::string_view kFunctionCalls = "function_calls";
inline constexpr std::string_view kInvoke = "invoke";
inline constexpr std::string_view kParameter = "parameter";

inline constexpr std::string_view kBlockOpen = "<｜DSML｜function_calls";
inline constexpr std::string_view kBlockClose = "</｜DSML｜function_calls>";
inline constexpr std::string_view kInvokeOpen = "<｜DSML｜invoke";
inline constexpr std::string_view kInvokeClose = "</｜DSML｜invoke";
inline constexpr std::string_view kParameterOpen = "<｜DSML｜parameter";
inline constexpr std::string_view kParameterClose = "</｜DSML｜parameter";

// The tool calls of V3, R1 and V3.1.
inline constexpr std::string_view kLegacyCallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kLegacyCallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kLegacyCallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kLegacyCallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kLegacySep = "<｜tool▁sep｜>";

// What no content and no reasoning shown to a user may hold.
inline constexpr std::array kNeverShown = {
    kBos,
    kEos,
    kThinkOpen,
    kThinkClose,
    kDsml,
    kLegacyCallsBegin,
    kLegacyCallsEnd,
    kLegacyCallBegin,
    kLegacyCallEnd,
    kLegacySep,
    std::string_view("<｜tool▁outputs▁begin｜>"),
    std::string_view("<｜tool▁outputs▁end｜>"),
    std::string_view("<｜tool▁output▁begin｜>"),
    std::string_view("<｜tool▁output▁end｜>"),
};

}  // namespace stoker::markers
