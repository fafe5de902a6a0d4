// The passes of a path, over its `Lanes`: included once a path, behind lines.h.

// Sums and squares in double from the first: the variance is their difference.
template <bool kLast>
struct Moments {
    using Sums = SumsOf<kLast, Doubles, 2>;

    const AgmmCounts counts;
    const size_t from;  // of the step
    double *sums, *squares;

    template <bool kFull>
    void run(const Place& place, Sums& part, size_t channel) const {
        const Lanes x = take_n<kLast, kFull>(counts, from + place.at, place);
        const Halves low = low_half(x), high = high_half(x);
        const size_t next = channel + kLanes / 2;
        part.add(0, channel, low), part.add(0, next, high);
        part.add(1, channel, low * low), part.add(1, next, high * high);
    }

    void take_up(const Place& line, Sums& part) const {
        part.move_to(sums + line.coefficient, 0, line.count);
        part.move_to(squares + line.coefficient, 1, line.count);
    }
};

// kSteps: T where it is known, so that membranes are registers, else 0.
template <size_t kSteps, bool kHard>
struct Scan {
    const size_t steps, step;
    const Lanes leak, threshold;

    Scan(const Shape& shape, const AgmmNeuron& neuron)
        : steps(kSteps ? kSteps : shape.steps),
          step(shape.step()),
          leak(all(neuron.leak)),
          threshold(all(neuron.threshold)) {}

    Lanes reset(Lanes u, Mask fired) const { return kHard ? unless(fired, u) : u - where(fired, threshold); }
};

// What AgmmStream says, at all steps of a group: term by term, so that what a channel has one of is loaded once.
template <size_t kSteps, bool kLast>
struct Stream {
    static constexpr size_t kMost = kSteps ? kSteps : kMostSteps;

    const AgmmStream its;
    const size_t steps, step, coefficients;

    Stream(const Shape& shape, const AgmmStream& its)
        : its(its),
          steps(kSteps ? kSteps : shape.steps),
          step(shape.step()),
          coefficients(shape.coefficients()) {}

    template <bool kFull>
    void take_all(Lanes* x, const Place& place) const {
#pragma GCC unroll 8
        for (size_t t = 0; t < steps; ++t) {
            x[t] = its.r ? take<kFull>(its.r + t * its.r_step + place.at, place.count) : Lanes{};
        }
        for (int64_t k = 0; k < its.number; ++k) add<kFull>(its.terms[k], its.r || k, x, place);
    }

    // `to`: whether there is something to add to.
    template <bool kFull>
    void add(const AgmmTerm& term, bool to, Lanes* x, const Place& place) const {
        const Lanes scale = of_channel<kLast, kFull>(term.scale + place.channel, place.count);
        const Lanes shift = of_channel<kLast, kFull>(term.shift + place.channel, place.count);
#pragma GCC unroll 8
        for (size_t t = 0; t < steps; ++t) {
            const float* gates = term.gate + t * coefficients + place.coefficient;
            const Lanes n = take_n<kLast, kFull>(term.counts, t * step + place.at, place);
            const Lanes added = of_channel<kLast, kFull>(gates, place.count) * multiply_add(n, scale, shift);
            x[t] = to ? added + x[t] : added;
        }
    }
};

template <size_t kSteps, bool kHard, bool kLast>
struct Forward : Scan<kSteps, kHard> {
    const Stream<kSteps, kLast> stream;
    const AgmmForward job;
    const bool past_caches;

    Forward(const Shape& shape, const AgmmNeuron& neuron, const AgmmForward& job)
        : Scan<kSteps, kHard>(shape, neuron), stream(shape, job.stream), job(job), past_caches(shape.stream) {}

    using Sums = NoSums;

    template <bool kFull>
    void run(const Place& place, Sums&, size_t) const {
        Lanes x[Stream<kSteps, kLast>::kMost], v = {};
        stream.template take_all<kFull>(x, place);
#pragma GCC unroll 8
        for (size_t t = 0; t < this->steps; ++t) {
            const size_t at = t * this->step + place.at;
            if (job.x) give<kFull>(job.x + at, x[t], place.count, past_caches);
            if (!job.spikes) continue;
            const Lanes u = this->leak * v + x[t];
            const Mask fired = reaches(u, this->threshold);
            give<kFull>(job.spikes + at, where(fired, all(1)), place.count, past_caches);
            v = this->reset(u, fired);
        }
    }

    void take_up(const Place&, Sums&) const {}
};

template <size_t kSteps, bool kHard, bool kLast>
struct Backward : Scan<kSteps, kHard> {
    static constexpr size_t kMost = kSteps ? kSteps : kMostSteps;

    const Stream<kSteps, kLast> stream;
    const AgmmBackward job;
    const size_t coefficients;
    const bool past_caches;
    const Lanes width, slope, through;

    using Sums = SumsOf<kLast, Floats, 2 * kMost>;

    Backward(const Shape& shape, const AgmmNeuron& neuron, const AgmmBackward& job)
        : Scan<kSteps, kHard>(shape, neuron),
          stream(shape, job.stream),
          job(job),
          coefficients(shape.coefficients()),
          past_caches(shape.stream),
          width(all(neuron.width)),
          slope(all(1 / (neuron.width * neuron.width))),
          through(all(neuron.detach ? 0 : 1)) {}

    template <bool kFull>
    void run(const Place& place, Sums& sums, size_t channel) const {
        Lanes u[kMost], v = {};
        if (job.grad_spikes) {
            stream.template take_all<kFull>(u, place);
#pragma GCC unroll 8
            for (size_t t = 0; t < this->steps; ++t) {
                u[t] = this->leak * v + u[t];
                v = this->reset(u[t], reaches(u[t], this->threshold));
            }
        }
        Lanes centre = {}, dv = {};
        if (job.sums) centre = of_channel<kLast, kFull>(job.centre + place.channel, place.count);
#pragma GCC unroll 8
        for (size_t later = 0; later < this->steps; ++later) {
            const size_t t = this->steps - 1 - later, at = t * this->step + place.at;
            Lanes g = {};
            if (job.grad_spikes) {
                g = step_back(u[t], dv, take<kFull>(job.grad_spikes + at, place.count));
                dv = this->leak * g;
            }
            if (job.grad_x) g += take<kFull>(job.grad_x + at, place.count);
            give<kFull>(job.g + at, g, place.count, past_caches);
            if (job.sums) {
                sums.add(2 * t, channel, g);
                sums.add(2 * t + 1, channel, g * (take_n<kLast, kFull>(job.counts, at, place) - centre));
            }
        }
    }

    // Gradient of the membrane u, of which dv is that of what the reset leaves (Eq. 1-4, 7).
    Lanes step_back(Lanes u, Lanes dv, Lanes grad) const {
        const Lanes triangle = at_least_zero(width - magnitude(u - this->threshold)) * slope;
        const Lanes ds = -through * (kHard ? u : this->threshold) * dv + grad;
        return ds * triangle + (kHard ? unless(reaches(u, this->threshold), dv) : dv);
    }

    void take_up(const Place& line, Sums& sums) const {
        if (!job.sums) return;
#pragma GCC unroll 8
        for (size_t t = 0; t < this->steps; ++t) {
            double* totals = job.sums + t * coefficients + line.coefficient;
            sums.move_to(totals, 2 * t, line.count);
            sums.move_to(totals + this->steps * coefficients, 2 * t + 1, line.count);
        }
    }
};

template <bool kLast>
struct Affine {
    using Sums = NoSums;

    const AgmmAffine job;
    const size_t from;  // of the step
    const bool past_caches;

    template <bool kFull>
    void run(const Place& place, Sums&, size_t) const {
        const auto of = [&](const float* x) __attribute__((always_inline)) {
            return of_channel<kLast, kFull>(x, place.count);
        };
        const size_t at = from + place.at;
        const Lanes n = take_n<kLast, kFull>(job.counts, at, place) - of(job.centre + place.channel);
        const Lanes g = take<kFull>(job.g + at, place.count);
        Lanes dn = of(job.by_g + place.coefficient) * g + of(job.by_n + place.channel) * n +
                   of(job.rest + place.coefficient);
        // rounded as a product behind the convolution is
        if (job.times) dn = dn * of(job.times + place.channel);
        if (job.dn) return give<kFull>(job.dn + at, dn, place.count, past_caches);
        kFull ? narrow(job.half + at, dn) : narrow_first(job.half + at, dn, place.count);
    }

    void take_up(const Place&, Sums&) const {}
};

void moments(const Shape& shape, const AgmmCounts& counts, double* sums, Part part) {
    const size_t of_step = shape.coefficients();
    for (size_t t = 0; t < shape.steps; ++t) {
        const size_t from = t * shape.step();
        double *to = sums + t * of_step, *squares = to + shape.steps * of_step;
        if (shape.last) {
            Moments<true> body{counts, from, to, squares};
            each_line<true>(body, shape, part);
        } else {
            Moments<false> body{counts, from, to, squares};
            each_line<false>(body, shape, part);
        }
    }
}

void affine(const Shape& shape, const AgmmAffine& job, Part part) {
    for (size_t t = 0; t < shape.steps; ++t) {
        const size_t from = t * shape.step(), coefficient = t * shape.coefficients();
        AgmmAffine here = job;
        here.by_g += coefficient, here.rest += coefficient;
        if (shape.last) {
            Affine<true> body{here, from, shape.stream};
            each_line<true>(body, shape, part);
        } else {
            Affine<false> body{here, from, shape.stream};
            each_line<false>(body, shape, part);
        }
    }
    if (shape.stream) end_stream();
}

template <template <size_t, bool, bool> class Pass, size_t kSteps, bool kHard, typename Job>
void scan_of(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    if (shape.last) {
        Pass<kSteps, kHard, true> body(shape, neuron, job);
        each_line<true>(body, shape, part);
    } else {
        Pass<kSteps, kHard, false> body(shape, neuron, job);
        each_line<false>(body, shape, part);
    }
    if (shape.stream) end_stream();
}

template <template <size_t, bool, bool> class Pass, size_t kSteps, typename Job>
void scan_over(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    if (neuron.hard) return scan_of<Pass, kSteps, true>(shape, neuron, job, part);
    scan_of<Pass, kSteps, false>(shape, neuron, job, part);
}

template <template <size_t, bool, bool> class Pass, typename Job>
void scan(const Shape& shape, const AgmmNeuron& neuron, const Job& job, Part part) {
    switch (shape.steps) {
        case 1: return scan_over<Pass, 1>(shape, neuron, job, part);
        case 2: return scan_over<Pass, 2>(shape, neuron, job, part);
        case 4: return scan_over<Pass, 4>(shape, neuron, job, part);
        case 8: return scan_over<Pass, 8>(shape, neuron, job, part);
        default: return scan_over<Pass, 0>(shape, neuron, job, part);
    }
}

void forward(const Shape& shape, const AgmmNeuron& neuron, const AgmmForward& job, Part part) {
    scan<Forward>(shape, neuron, job, part);
}

void backward(const Shape& shape, const AgmmNeuron& neuron, const AgmmBackward& job, Part part) {
    scan<Backward>(shape, neuron, job, part);
}
