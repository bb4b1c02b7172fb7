// Conversations without a terminal and without a model: what is sent, what is kept.
#include "tools/chat_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/byte_tokenizer.h"
#include "tests/support/temp_dir.h"
#include "tests/tools/scripted_tokens.h"
#include "tools/chat_commands.h"

namespace stoker::tools {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::IsNull;
using testing::NotNull;

constexpr const char* kCall =
    "\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"apt_show\">\n"
    "<｜DSML｜parameter name=\"package\" string=\"true\">curl</｜DSML｜parameter>\n"
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>";

class ChatSessionTest : public testing::Test {
 protected:
  explicit ChatSessionTest(const std::string& format = "v3.2", int context_tokens = 8192)
      : text_{Tokenizer::parse(test::byte_tokenizer_json(), "test").value(),
              make_chat_format(format).value()},
        tokens_(text_.tokenizer, context_tokens),
        session_(text_, tokens_, {test::kByteEos}) {}

  static std::vector<JsonValue> tools() {
    return {parse_json(R"({"name": "apt_show", "parameters": {}})").value()};
  }
  Result<ChatReply> command(const std::string& line) {
    return run_chat_command(session_, parse_chat_command(line).value());
  }

  TextModel text_;
  test::ScriptedTokens tokens_;
  ChatSession session_;
};

TEST_F(ChatSessionTest, TurnsFollowEachOtherAndReuseWhatIsCached) {
  tokens_.add_answer("Hello.");
  tokens_.add_answer("Four.");
  const Generation first = session_.ask("hi").value();
  EXPECT_EQ(first.message.content, "Hello.");
  EXPECT_EQ(first.finish, FinishReason::kStop);
  EXPECT_EQ(first.tokens.back(), test::kByteEos);
  const Generation second = session_.ask("2+2?").value();
  EXPECT_EQ(tokens_.prompts()[1],
            "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜></think>Hello."
            "<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜></think>");
  EXPECT_EQ(second.counts.cached_tokens,
            static_cast<int>(first.prompt.size() + first.tokens.size()));
  EXPECT_EQ(session_.totals().answers, 2);
  EXPECT_EQ(session_.messages().size(), 4u);
}

TEST_F(ChatSessionTest, ThinkingIsKeptApartAndDroppedFromLaterPrompts) {
  ASSERT_TRUE(session_.set_thinking(true).ok());
  ASSERT_TRUE(session_.set_system("Be terse.").ok());
  tokens_.add_answer("A greeting.</think>Hello.");
  tokens_.add_answer("Sum.</think>4");
  const Generation first = session_.ask("hi").value();
  EXPECT_EQ(first.message.reasoning_content, "A greeting.");
  EXPECT_EQ(first.message.content, "Hello.");
  ASSERT_TRUE(session_.ask("2+2?").ok());
  EXPECT_EQ(tokens_.prompts()[1],
            "<｜begin▁of▁sentence｜>Be terse.<｜User｜>hi<｜Assistant｜></think>Hello."
            "<｜end▁of▁sentence｜><｜User｜>2+2?<｜Assistant｜><think>");
}

TEST_F(ChatSessionTest, AToolCallWaitsForItsResult) {
  ASSERT_TRUE(session_.set_tools(tools()).ok());
  tokens_.add_answer(std::string("Let me look.") + kCall);
  tokens_.add_answer("It fetches URLs.");
  const Generation call = session_.ask("What is curl?").value();
  EXPECT_EQ(call.finish, FinishReason::kToolCalls);
  ASSERT_THAT(session_.awaited_call(), NotNull());
  EXPECT_EQ(session_.awaited_call()->name, "apt_show");
  EXPECT_EQ(session_.awaited_call()->arguments, R"({"package": "curl"})");
  session_.give_tool_result("curl: a client");
  ASSERT_THAT(session_.awaited_call(), IsNull());
  EXPECT_EQ(session_.answer_to_results().value().message.content, "It fetches URLs.");
  EXPECT_THAT(tokens_.prompts()[1],
              EndsWith("<function_results>\n<result>curl: a client</result>\n</function_results>"
                       "\n\n</think>"));
}

TEST_F(ChatSessionTest, AToolResultByCommand) {
  ASSERT_TRUE(session_.set_tools(tools()).ok());
  EXPECT_FALSE(command("/tool x").ok());
  tokens_.add_answer(kCall);
  ASSERT_TRUE(session_.ask("curl?").ok());
  const ChatReply reply = command("/tool a client").value();
  EXPECT_EQ(reply.action, ChatAction::kAnswer);
  EXPECT_EQ(session_.messages().back().content, "a client");
}

TEST_F(ChatSessionTest, AFailedTurnLeavesTheConversationAsItWas) {
  tokens_.add_answer("Hello.");
  tokens_.add_failure("Half an ans", Error(ErrorCode::kIo, "the drive is gone"));
  tokens_.add_answer("Again.");
  ASSERT_TRUE(session_.ask("hi").ok());
  const Result<Generation> failed = session_.ask("more");
  ASSERT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().message(), "the drive is gone");
  EXPECT_EQ(session_.messages().size(), 2u);
  EXPECT_EQ(session_.ask("more").value().message.content, "Again.");
}

TEST_F(ChatSessionTest, AFailureAfterAToolResultAsksForTheResultAgain) {
  ASSERT_TRUE(session_.set_tools(tools()).ok());
  tokens_.add_answer(kCall);
  tokens_.add_failure("", Error(ErrorCode::kIo, "gone"));
  ASSERT_TRUE(session_.ask("curl?").ok());
  session_.give_tool_result("x");
  EXPECT_FALSE(session_.answer_to_results().ok());
  EXPECT_THAT(session_.awaited_call(), NotNull());
}

TEST_F(ChatSessionTest, CancellingKeepsWhatWasSaid) {
  tokens_.add_answer("A long story");
  CancelToken cancel;
  GenerationHooks hooks;
  hooks.cancel = &cancel;
  std::string seen;
  hooks.on_delta = [&](const StreamDelta& delta) {
    seen += delta.text;
    if (seen.size() >= 6) cancel.cancel();
    return Status();
  };
  const Generation generation = session_.ask("tell", hooks).value();
  EXPECT_EQ(generation.finish, FinishReason::kCancelled);
  EXPECT_EQ(session_.messages().back().content, "A long");
}

TEST_F(ChatSessionTest, CancellingBeforeAnyTextTakesTheTurnBack) {
  tokens_.add_answer("never");
  CancelToken cancel;
  cancel.cancel();
  GenerationHooks hooks;
  hooks.cancel = &cancel;
  EXPECT_EQ(session_.ask("tell", hooks).value().finish, FinishReason::kCancelled);
  EXPECT_TRUE(session_.messages().empty());
}

TEST_F(ChatSessionTest, ACutOffCallIsNoCall) {
  tokens_.add_failure(std::string(kCall).substr(0, 90), Error(ErrorCode::kCancelled, ""));
  ASSERT_TRUE(session_.ask("curl?").ok());
  EXPECT_THAT(session_.awaited_call(), IsNull());
}

TEST_F(ChatSessionTest, UndoAndReset) {
  tokens_.add_answer("A");
  tokens_.add_answer("B");
  EXPECT_FALSE(session_.undo());
  ASSERT_TRUE(session_.ask("a").ok());
  ASSERT_TRUE(session_.ask("b").ok());
  EXPECT_TRUE(session_.undo());
  EXPECT_EQ(session_.messages().back().content, "A");
  session_.reset();
  EXPECT_TRUE(session_.messages().empty());
}

TEST_F(ChatSessionTest, SavedConversationsComeBackWhole) {
  const test::TempDir dir;
  const std::string file = (dir.path() / "chat.json").string();
  ASSERT_TRUE(session_.set_system("Be terse.").ok());
  ASSERT_TRUE(session_.set_tools(tools()).ok());
  ASSERT_TRUE(session_.set_thinking(true).ok());
  tokens_.add_answer(std::string("Look.</think>") + kCall);
  ASSERT_TRUE(session_.ask("curl?").ok());
  const SavedConversation before = session_.saved();
  ASSERT_TRUE(command("/save " + file).ok());
  session_.reset();
  ASSERT_TRUE(session_.set_system("").ok());
  ASSERT_TRUE(session_.set_tools({}).ok());
  ASSERT_TRUE(session_.set_thinking(false).ok());
  ASSERT_TRUE(command("/load " + file).ok());
  EXPECT_EQ(to_json_text(conversation_to_json(session_.saved())),
            to_json_text(conversation_to_json(before)));
  EXPECT_THAT(session_.awaited_call(), NotNull());
  EXPECT_TRUE(session_.thinking());
  EXPECT_EQ(session_.num_tools(), 1u);
}

TEST_F(ChatSessionTest, WhatCannotBeLoadedChangesNothing) {
  tokens_.add_answer("A");
  ASSERT_TRUE(session_.ask("a").ok());
  EXPECT_FALSE(command("/load /no/such/file").ok());
  const auto load = [&](const char* text) {
    Result<SavedConversation> conversation = conversation_from_json(text, "file");
    return conversation.ok() ? session_.load(std::move(conversation).value())
                             : Status(std::move(conversation).error());
  };
  EXPECT_THAT(load("{}").error().message(), HasSubstr("\"messages\""));
  EXPECT_THAT(load("[{\"role\": \"pope\"}]").error().message(), HasSubstr("unknown role"));
  EXPECT_THAT(load(R"([{"role": "user", "content": "q"}])").error().message(),
              HasSubstr("no answer"));
  EXPECT_FALSE(load(R"([{"role": "tool", "content": "r"}])").ok());
  EXPECT_EQ(session_.messages().size(), 2u);
}

TEST_F(ChatSessionTest, Commands) {
  EXPECT_THAT(command("/help").value().text, HasSubstr("/think on|off"));
  EXPECT_EQ(command("/think on").value().text, "thinking is on");
  EXPECT_FALSE(command("/think maybe").ok());
  EXPECT_EQ(command("/system Be\nterse.").value().text, "system message: Be\nterse.");
  EXPECT_EQ(command("/system off").value().text, "no system message");
  EXPECT_THAT(command("/stats").value().text, HasSubstr("of 8192 tokens"));
  EXPECT_EQ(command("/quit").value().action, ChatAction::kQuit);
  EXPECT_THAT(command("/nonsense").error().message(), HasSubstr("/help"));
}

TEST(ChatCommand, WhatIsOne) {
  EXPECT_EQ(parse_chat_command("/think on")->argument, "on");
  EXPECT_EQ(parse_chat_command("/stats")->name, "stats");
  EXPECT_FALSE(parse_chat_command("/usr/bin/env"));
  EXPECT_FALSE(parse_chat_command("/* a comment */"));
  EXPECT_FALSE(parse_chat_command("say /help"));
  EXPECT_FALSE(parse_chat_command("/"));
}

class ShortContextTest : public ChatSessionTest {
 protected:
  ShortContextTest() : ChatSessionTest("v3.2", 24) {}
};

TEST_F(ShortContextTest, AFullContextIsSaidAndResetHelps) {
  tokens_.add_answer("A very long answer that does not fit at all");
  tokens_.add_answer("ok");
  const Generation cut = session_.ask("hi").value();
  EXPECT_EQ(cut.finish, FinishReason::kLength);
  EXPECT_EQ(cut.prompt.size() + cut.tokens.size(), 25u);  // the last token is not computed
  const Result<Generation> full = session_.ask("and now?");
  ASSERT_FALSE(full.ok());
  EXPECT_THAT(full.error().message(), HasSubstr("the context holds 24; start with a larger --ctx"));
  EXPECT_EQ(session_.messages().size(), 2u);
  session_.reset();
  EXPECT_EQ(session_.ask("hi").value().message.content, "ok");
}

class PlainFormatTest : public ChatSessionTest {
 protected:
  PlainFormatTest() : ChatSessionTest("v3") {}
};

TEST_F(PlainFormatTest, WhatTheFormatCannotExpressIsRefused) {
  EXPECT_FALSE(session_.set_thinking(true).ok());
  EXPECT_FALSE(session_.set_tools(tools()).ok());
  EXPECT_FALSE(session_.thinking());
  EXPECT_EQ(session_.num_tools(), 0u);
}

}  // namespace
}  // namespace stoker::tools
