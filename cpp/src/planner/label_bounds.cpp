#include "planner/label_bounds.hpp"

#include <algorithm>
#include <limits>

namespace orbitsplit::planner {

LabelBounds::LabelBounds(const Tables& t, const Metric& metric, const std::vector<Interval>& intervals)
    : decode_sum_(metric.decode_sum),
      prefill_max_(metric.prefill_max),
      decode_max_(metric.decode_max),
      loss_limit_(t.loss_limit) {
    std::vector<const Relaxation*> columns;
    for (const Interval& interval : intervals) {
        bands_.push_back({interval.low, columns.size(), columns.size() + interval.relaxations.size()});
        for (const Relaxation& r : interval.relaxations) columns.push_back(&r);
    }
    width_ = columns.size();
    const std::size_t states = state(t, t.pasts, 0, 0);
    depart_.resize(states * width_);
    arrive_.resize(states * width_);
    for (std::size_t c = 0; c < width_; ++c) {
        prices_.push_back(columns[c]->price);
        for (std::size_t s = 0; s < states; ++s) {
            depart_[s * width_ + c] = columns[c]->depart[s];
            arrive_[s * width_ + c] = columns[c]->arrive[s];
        }
    }
}

double LabelBounds::bound(const Label& label, std::size_t at) const {
    const double sum = label.prefill.sum + decode_sum_ * label.token.sum;
    const double max = prefill_max_ * label.prefill.max + decode_max_ * label.token.max;
    const double left = loss_limit_ - label.loss;
    const double* row = (label.is_arrived ? arrive_ : depart_).data() + at * width_;
    double least = std::numeric_limits<double>::infinity();
    for (const Band& band : bands_) {
        double rest = 0;
        for (std::size_t c = band.first; c < band.stop; ++c)
            rest = std::max(rest, row[c] - prices_[c] * left);
        least = std::min(least, rest + std::max(max, band.low));
    }
    return sum + least;
}

}  // namespace orbitsplit::planner
