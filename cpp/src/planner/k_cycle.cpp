#include "planner/k_cycle.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace orbitsplit::planner {

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Builds the places of one more node. One that remembers as much as it may becomes one for each link that it may be
// left by, and stays as itself for chains that have just that many stages.
class Lengthening {
  public:
    Lengthening(const std::vector<char>& is_kept, const Tables& t)
        : is_kept_(is_kept), t_(t), same_(t.places(), -1), longer_(t.neighbour.size(), -1) {}

    void run(Tables& result) {
        for (int p = 0; p < t_.places(); ++p) {
            if (!is_kept_[p]) continue;
            same_[p] = static_cast<int>(origin_.size());
            origin_.push_back({p, t_.remembered[p], t_.oldest[p]});
        }
        for (int p = 0; p < t_.places(); ++p) {
            for (int e = t_.neighbour_start[p]; is_full(p) && e < t_.neighbour_start[p + 1]; ++e) {
                if (!is_kept_[t_.neighbour[e]]) continue;
                longer_[e] = static_cast<int>(origin_.size());
                origin_.push_back({t_.neighbour[e], t_.memory + 1, t_.oldest[p]});
            }
        }
        for (const Origin& origin : origin_) add(origin);
        grown_.neighbour_start.push_back(static_cast<int>(grown_.neighbour.size()));
        for (int& place : result.start_place) place = place < 0 ? -1 : same_[place];
        result.memory += 1;
        result.node_of = std::move(grown_.node_of);
        result.remembered = std::move(grown_.remembered);
        result.oldest = std::move(grown_.oldest);
        result.neighbour_start = std::move(grown_.neighbour_start);
        result.neighbour = std::move(grown_.neighbour);
        result.bandwidth = std::move(grown_.bandwidth);
        result.pace = std::move(grown_.pace);
        result.latency = std::move(grown_.latency);
    }

  private:
    struct Origin {
        int place;
        int remembered;
        int oldest;
    };

    bool is_full(int place) const { return is_kept_[place] && t_.remembered[place] == t_.memory; }

    void add(const Origin& origin) {
        grown_.node_of.push_back(t_.node_of[origin.place]);
        grown_.remembered.push_back(origin.remembered);
        grown_.oldest.push_back(origin.oldest);
        grown_.neighbour_start.push_back(static_cast<int>(grown_.neighbour.size()));
        for (int e = t_.neighbour_start[origin.place]; e < t_.neighbour_start[origin.place + 1]; ++e) {
            const bool is_longer = t_.remembered[origin.place] == t_.memory;
            const int to = is_longer ? longer_[e] : same_[t_.neighbour[e]];
            const bool repeats =
                origin.remembered > t_.memory && t_.node_of[t_.neighbour[e]] == origin.oldest;
            if (to < 0 || repeats) continue;
            grown_.neighbour.push_back(to);
            grown_.bandwidth.push_back(t_.bandwidth[e]);
            grown_.pace.push_back(t_.pace[e]);
            grown_.latency.push_back(t_.latency[e]);
        }
    }

    const std::vector<char>& is_kept_;
    const Tables& t_;
    std::vector<int> same_;    // places: the new place that remembers no more
    std::vector<int> longer_;  // links: the new place that remembers both ends
    std::vector<Origin> origin_;
    Tables grown_;
};

}  // namespace

std::vector<char> hopeful_places(const Tables& t, const Root& root) {
    // A better plan is in some interval of every metric, and no better than that interval's bound on its places.
    std::vector<char> is_kept(t.places(), 1);
    for (std::size_t a = 0; a < t.metrics.size(); ++a) {
        std::vector<double> least(t.places(), infinity);
        for (const Interval& interval : root.intervals[a]) {
            std::vector<double> bound(t.places(), 0);
            for (const auto& relaxation : interval.relaxations) {
                const std::vector<double> sums = through(t, t.metrics[a], *relaxation);
                for (int p = 0; p < t.places(); ++p)
                    bound[p] = std::max(bound[p], sums[p] - relaxation->price * t.loss_limit + interval.low);
            }
            for (int p = 0; p < t.places(); ++p) least[p] = std::min(least[p], bound[p]);
        }
        for (int p = 0; p < t.places(); ++p) {
            if (least[p] >= root.incumbent.cutoff()) is_kept[p] = 0;
        }
    }
    return is_kept;
}

double lengthened_links(const Tables& t, const std::vector<char>& is_kept) {
    double links = 0;
    for (int p = 0; p < t.places(); ++p) {
        for (int e = t.neighbour_start[p]; is_kept[p] && e < t.neighbour_start[p + 1]; ++e) {
            const int to = t.neighbour[e];
            if (is_kept[to]) links += 1 + t.neighbour_start[to + 1] - t.neighbour_start[to];
        }
    }
    return links;
}

void lengthen(const std::vector<char>& is_kept, Tables& t) {
    Tables result = t;
    Lengthening(is_kept, t).run(result);
    t = std::move(result);
}

}  // namespace orbitsplit::planner
