package simulator

// ForgetSessions makes every client log in again, as a restart does.
func ForgetSessions() {
	sessionMutex.Lock()
	defer sessionMutex.Unlock()
	Map.SessionManager().sessions = make(map[string]Session)
}
