// UsageHistory: how often each expert was used, forgetting slowly; kept between runs.
#pragma once

namespace stoker {

class UsageHistory;

}  // namespace stoker
